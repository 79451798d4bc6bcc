"""``guestwire status``: what the running processes of this user serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guestwire.control import Direction, GuestState, Memory, Status, ask_status
from guestwire.errors import HostError
from guestwire.metrics import lost_in_kernel
from guestwire.runtime import CONTROL_SOCKET, base_directory, live_directories, process_number
from guestwire.sizes import format_size


def status(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; its schema is in docs/reference.md.")
    ] = False,
    pid: Annotated[int | None, typer.Option(help="Only the process with this number.")] = None,
) -> None:
    """Show guests, their ports and what has crossed them."""
    answers, failures = ask_all(pid)
    if not answers and not failures:
        which = f"process {pid}" if pid is not None else "guestwire process"
        raise HostError(
            f"no running {which} has its runtime directory in {base_directory()}",
            "guestwire run --socket-path PATH --port PORT",
        )
    guests = [guest for answer in answers.values() for guest in answer.guests]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode({"guests": guests}), indent=2).decode())
    else:
        Console().print(_table(answers.values()))
    for failure in failures:
        raise failure


def ask_all(pid: int | None) -> tuple[dict[Path, Status], list[HostError]]:
    """Ask the processes, or those with this number.

    Returns:
        what they answer, by control socket, and why others that live do not.
    """
    answers: dict[Path, Status] = {}
    failures = []
    for directory in live_directories():
        if pid is not None and process_number(directory) != pid:
            continue
        try:
            answers[directory / CONTROL_SOCKET] = ask_status(directory / CONTROL_SOCKET)
        except HostError as error:
            if directory in live_directories():  # it has not just ended
                failures.append(error)
    return answers, failures


def _table(answers: Iterable[Status]) -> Table:
    table = Table(title="guests")
    for column in ("guest", "state", "port", "mode", "memory", "to the guest", "from the guest"):
        table.add_column(column, overflow="fold")
    for answer in answers:
        for guest in answer.guests:
            table.add_row(*_row(guest))
    return table


def _row(guest: GuestState) -> tuple[str, ...]:
    port = guest.port
    mode = "" if port.kind != "xdp" else f"{port.mode or 'none'}"
    if port.mode_reason:
        mode += f"\n({escape(port.mode_reason)})"
    if port.members:
        mode = f"with {', '.join(port.members)}"
    errors = [f"ring {ring.index}: {ring.error}" for ring in guest.rings if ring.error]
    return (
        guest.name,
        escape("\n".join([guest.state, *errors, *guest.notices])),
        f"{port.kind} {port.interface or port.network or ''}",
        mode,
        _memory(guest.memory),
        _direction(guest.counters.rx, lost_in_kernel(guest.counters.kernel)),
        _direction(guest.counters.tx, {}),
    )


def _memory(memory: Memory) -> str:
    lines = [format_size(memory.guest_bytes)]
    if memory.budget_bytes is not None:
        lines.append(f"{format_size(memory.pinned_bytes)} of {format_size(memory.budget_bytes)} pinned")
    elif memory.pinned_bytes:
        lines.append(f"{format_size(memory.pinned_bytes)} pinned")
    return "\n".join(lines)


def _direction(counters: Direction, kernel: Mapping[str, int]) -> str:
    lines = [f"{counters.frames:,} frames, {counters.bytes:,} bytes"]
    for label, count in (
        ("zero-copy", counters.zero_copy_frames),
        ("direct", counters.direct_frames),
        *((f"copied ({reason})", count) for reason, count in counters.copied_frames.items()),
        *((f"dropped ({reason})", count) for reason, count in counters.drops.items()),
        *((f"dropped by the kernel ({reason})", count) for reason, count in kernel.items()),
    ):
        if count:
            lines.append(f"{count:,} {label}")
    return "\n".join(lines)

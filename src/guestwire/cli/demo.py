"""``guestwire demo``: a real guest on a real network interface, from boot to checksum."""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from guestwire.errors import ConfigurationError
from guestwire.ports.modes import MODES

if TYPE_CHECKING:
    from guestwire.testing.demo import Result

COPIES = ("not copied", "copied once", "copied twice")


class GuestKind(StrEnum):
    """What runs the guest."""

    QEMU = "qemu"
    UML = "uml"


def demo(
    guest: Annotated[GuestKind, typer.Option(help="A QEMU machine, or User-Mode Linux.")] = GuestKind.QEMU,
    size: Annotated[int, typer.Option(min=1, help="MiB of random bytes to send each way.")] = 64,
    mode: Annotated[str, typer.Option(help=f"Of the xdp port: {', '.join(MODES)}.")] = MODES[0],
    embedded: Annotated[
        bool, typer.Option("--embedded", help="No guest, no root: a driver of ours, every byte compared.")
    ] = False,
) -> None:
    """Boot a guest, put it on a wire, move data both ways, compare checksums (needs root).

    The wire is a veth pair between two network namespaces of its own: nothing of the machine's
    network is touched, and nothing is left behind.
    """
    console = Console(highlight=False)
    with Steps(console) as steps:
        shown = _embedded(steps) if embedded else _with_guest(guest, size << 20, mode, steps)
    console.print()
    console.print(shown)
    console.print(f"Everything held; {steps.seconds:.0f} s in all.")


def _with_guest(kind: GuestKind, size: int, mode: str, steps: Steps) -> RenderableType:
    if mode not in MODES:
        raise ConfigurationError(f"unknown mode {mode!r}", f"use one of {', '.join(MODES)}")
    from guestwire.testing.demo import run  # noqa: PLC0415 (other verbs start faster without it)

    result = run(kind.value, size, mode, steps)
    reason = f" ({result.mode_reason})" if result.mode_reason else ""
    there, back = result.ping_ms
    return Group(
        Text(f"guest  {result.guest}"),
        Text(f"port   {result.mode}{reason}"),
        Text(f"ping   {there:.2f} ms from the guest, {back:.2f} ms to it"),
        _ways(result),
    )


def _embedded(steps: Steps) -> RenderableType:
    from guestwire.testing.embedded_demo import run  # noqa: PLC0415 (as above)

    table = Table(title="Frames, compared byte by byte")
    table.add_column("way")
    for title in ("bytes", "frames", "Mpps", "copied, and why"):
        table.add_column(title, justify="right")
    for done in run(steps):
        shortest, longest = done.sizes
        table.add_row(
            done.work,
            f"{shortest}" if shortest == longest else f"{shortest} to {longest}",
            f"{done.frames:,}",
            f"{done.frames / done.seconds / 1e6:.2f}",
            "\n".join(f"{count:,} ({why})" for why, count in done.copied.items()) or "none",
        )
    return table


class Steps:
    """Shows what is being done: a line for each step, and a bar while a file moves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._bar = Progress(
            "       ",
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    @property
    def seconds(self) -> float:
        """Time since the first step."""
        return time.monotonic() - self._start

    def step(self, description: str) -> None:
        """A new step begins."""
        self._bar.reset(self._task, total=None, description="")
        self._console.print(f"{self.seconds:5.1f} s  {description}", markup=False)

    def moved(self, done: int, total: int) -> None:
        """Of a file, ``done`` of ``total`` bytes have arrived."""
        text = f"{done >> 20} of {total >> 20} MiB"
        self._bar.update(self._task, completed=done, total=total, description=text)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def _ways(result: Result) -> Table:
    """A column for each way, and a row for each thing that is worth knowing about it."""
    ways = (result.to_guest, result.from_guest)
    table = Table(title="A file of random bytes, by TCP")
    table.add_column()
    table.add_column("to the guest", justify="right")
    table.add_column("from the guest", justify="right")

    def row(label: str, cells: Iterable[str]) -> None:
        table.add_row(label, *cells)

    row("size", (f"{way.transfer.size >> 20} MiB" for way in ways))
    row("SHA-512", (f"equal ({way.transfer.received_checksum[:12]}…)" for way in ways))
    row("time", (f"{way.transfer.seconds:.2f} s" for way in ways))
    row("throughput", (f"{way.transfer.bits_per_second / 1e6:.0f} Mbit/s" for way in ways))
    row("guestwire's CPU time", (f"{way.backend_cpu:.2f} s" for way in ways))
    row("frames", (f"{way.frames:,}" for way in ways))
    for times, words in enumerate(COPIES):
        row(f"  {words}", (f"{way.copied(times):,}" for way in ways))
        for reason in sorted({reason for way in ways for reason in way.reasons(times)}):
            row(f"    {reason}", (f"{way.reasons(times).get(reason, 0):,}" for way in ways))
    row("frames lost, sent again", (f"{sum(way.drops.values()):,}" for way in ways))
    for reason in sorted({reason for way in ways for reason in way.drops}):
        row(f"    {reason}", (f"{way.drops.get(reason, 0):,}" for way in ways))
    return table

"""``guestwire doctor``: what this machine and an interface offer, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guestwire.errors import ConfigurationError
from guestwire.host.checks import Check, Status, diagnose, inspect, worst
from guestwire.ports import geometry
from guestwire.ports.forecast import PlannedGuest, guest_checks
from guestwire.sizes import parse_size
from guestwire.testing.accelerator import tried_kvm

SCHEMA_VERSION: Final = 1
"""Of the JSON answer; it changes when a field changes its meaning or goes, not if one is added."""

_STYLES: Final = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}

_CONCLUSIONS: Final = {
    Status.OK: "Everything is in order.",
    Status.WARNING: "xdp ports will work, but see the warnings.",
    Status.PROBLEM: "xdp ports will be refused until the problems are solved.",
}


def doctor(
    interface: Annotated[
        str | None,
        typer.Argument(
            metavar="IFNAME",
            help="Also check this interface. Unless it carries the default route, a socket is "
            "bound to it for a moment, which resets some NICs.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="The receive queue of the interface to check.")] = 0,
    guest_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Also say what a guest of this size (4G) would cost and get."),
    ] = None,
    queues: Annotated[int, typer.Option(min=1, max=64, help="Queue pairs of that guest.")] = 1,
    max_pinned: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The limit on pinned memory that is meant for it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Say what this machine offers to guests, and what to do about what is missing.

    The exit status is 0 if nothing is a problem, 1 otherwise.
    """
    guest = _planned(guest_memory, queues, max_pinned)
    findings = inspect(interface, queue)
    findings = replace(findings, host=replace(findings.host, kvm=tried_kvm()))
    largest_mtu = geometry.largest_mtu(multi_buffer=bool(findings.host.af_xdp_multi_buffer))
    checks = diagnose(findings, largest_mtu, queues)
    if guest is not None:
        checks += guest_checks(findings, guest, checks)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report(interface, checks))))
    else:
        show(checks, Console())
    if worst(checks) is Status.PROBLEM:
        raise typer.Exit(1)


def _planned(guest_memory: str | None, queue_pairs: int, max_pinned: str | None) -> PlannedGuest | None:
    """Turn the options into a guest.

    Raises:
        ConfigurationError: they describe none.
    """
    if guest_memory is None:
        if queue_pairs > 1 or max_pinned is not None:
            raise ConfigurationError(
                "--queues and --max-pinned describe a guest, and none is asked about",
                "add --guest-memory SIZE, such as 4G",
            )
        return None
    return PlannedGuest(
        memory_bytes=_size("--guest-memory", guest_memory),
        queue_pairs=queue_pairs,
        max_pinned=None if max_pinned is None else _size("--max-pinned", max_pinned),
    )


def _size(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}", f"guestwire doctor {option} 4G") from error


def report(interface: str | None, checks: Sequence[Check]) -> dict[str, Any]:
    """The JSON answer: ``version``, ``interface``, ``status`` and ``checks[]``.

    A check has ``name``, ``status`` (``ok``, ``warning`` or ``problem``), ``found``, ``meaning``
    and ``remedy``, which is null if there is nothing to do.
    """
    return {
        "version": SCHEMA_VERSION,
        "interface": interface,
        "status": worst(checks),
        "checks": [asdict(check) for check in checks],
    }


def show(checks: Sequence[Check], console: Console) -> None:
    """Print the answers as a table, and below it, unbroken so that it can be copied, what to do."""
    table = Table()
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("what it means", overflow="fold")
    for check in checks:
        status = Text(check.status, style=_STYLES[check.status])
        table.add_row(status, check.name, Text(check.found), Text(check.meaning))
    console.print(table)
    remedies = [check for check in checks if check.remedy is not None]
    if remedies:
        console.print("What to do:")
    for check in remedies:
        line = Text.assemble("  ", (check.name, _STYLES[check.status]), f": {check.remedy}")
        console.print(line, soft_wrap=True)
    console.print(_CONCLUSIONS[worst(checks)])

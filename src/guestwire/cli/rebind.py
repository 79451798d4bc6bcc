"""``guestwire rebind``: bind a guest to another port while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guestwire.cli.status import ask_all
from guestwire.control import ask_rebind
from guestwire.errors import ConfigurationError
from guestwire.ports.parse import SYNTAX


def rebind(
    guest: Annotated[str, typer.Argument(metavar="GUEST", help="The guest's name: guestwire status.")],
    port: Annotated[str, typer.Argument(metavar="PORT", help=f"Where its frames go from now on: {SYNTAX}")],
    pid: Annotated[int | None, typer.Option(help="The process that serves it, if several do.")] = None,
) -> None:
    """Bind a guest to another port; all it notices is that its link flaps."""
    done = ask_rebind(_server(guest, pid), guest, port)
    typer.echo(f"{guest}: {done.old_port} -> {done.port}, {done.milliseconds:.1f} ms without a port")


def _server(guest: str, pid: int | None) -> Path:
    """Return the control socket of the process that serves the guest of this name."""
    answers, failures = ask_all(pid)
    servers = {
        path: answer.pid
        for path, answer in answers.items()
        if any(served.name == guest for served in answer.guests)
    }
    if len(servers) == 1:
        return next(iter(servers))
    if servers:
        listed = ", ".join(map(str, servers.values()))
        raise ConfigurationError(
            f"several processes serve a guest named {guest}: {listed}",
            f"guestwire rebind {guest} PORT --pid {next(iter(servers.values()))}",
        )
    for failure in failures:
        raise failure
    names = sorted(served.name for answer in answers.values() for served in answer.guests)
    where = f"process {pid}" if pid is not None else "a running process of this user"
    raise ConfigurationError(
        f"no guest named {guest} is served by {where}; there are: {', '.join(names) or 'none'}",
        "guestwire status",
    )

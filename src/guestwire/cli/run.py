"""``guestwire run``: serve guests until told to end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from guestwire.config import Configuration, check, load
from guestwire.errors import ConfigurationError
from guestwire.ports.parse import SYNTAX

CAPABILITIES = {"type": "net", "features": []}
"""What ``--print-capabilities`` prints (QEMU, docs/interop/vhost-user.json, VHostUserBackendCapabilities)."""


def run(
    file: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Serve the guests it describes.")
    ] = None,
    socket_path: Annotated[
        str | None, typer.Option(help="Serve one guest on this vhost-user socket.")
    ] = None,
    socket_mode: Annotated[
        str | None, typer.Option(metavar="OCTAL", help="Permissions of the socket's file, such as 0660.")
    ] = None,
    socket_group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Group of the socket's file, by name or number.")
    ] = None,
    fd: Annotated[
        int | None, typer.Option(help="The same on an inherited socket, listening or connected.")
    ] = None,
    port: Annotated[str | None, typer.Option(help=f"Where its frames go: {SYNTAX}")] = None,
    connect: Annotated[
        bool,
        typer.Option("--connect", help="Connect to the socket (QEMU is the server), and retry."),
    ] = False,
    name: Annotated[str | None, typer.Option(help="The guest's name.")] = None,
    queue_pairs: Annotated[int | None, typer.Option(help="How many queue pairs to offer.")] = None,
    mac: Annotated[str | None, typer.Option(help="The guest's address, for frontends that ask.")] = None,
    poll_us: Annotated[
        int | None, typer.Option(help="Longest time to poll before sleeping, in microseconds.")
    ] = None,
    coalesce_us: Annotated[
        int | None, typer.Option(help="Longest time to hold back a call to the guest, in microseconds.")
    ] = None,
    coalesce_packets: Annotated[
        int | None, typer.Option(help="Most frames for which it is held back.")
    ] = None,
    cpus: Annotated[str | None, typer.Option(help="CPUs for the workers, such as 2,3.")] = None,
    max_pinned: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory that the kernel may pin, such as 8G.")
    ] = None,
    print_capabilities: Annotated[
        bool,
        typer.Option("--print-capabilities", help="Print what this backend is, in JSON, and end."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Serve guests in the foreground until SIGTERM, SIGINT or SIGHUP."""
    if print_capabilities:
        typer.echo(msgspec.json.encode(CAPABILITIES).decode())
        return
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    flags = {
        "socket_path": socket_path,
        "socket_mode": socket_mode,
        "socket_group": socket_group,
        "fd": fd,
        "port": port,
        "role": "connect" if connect else None,
        "name": name,
        "queue_pairs": queue_pairs,
        "mac": mac,
        "poll_us": poll_us,
        "coalesce_us": coalesce_us,
        "coalesce_packets": coalesce_packets,
        "cpus": cpus,
        "max_pinned": max_pinned,
    }
    configuration = _configuration(file, {key: v for key, v in flags.items() if v is not None})
    from guestwire.daemon import Daemon  # noqa: PLC0415 (other verbs start faster without it)

    asyncio.run(Daemon(configuration).run())


def _configuration(file: Path | None, flags: dict[str, Any]) -> Configuration:
    """Make one description from a file or from flags."""
    if file is not None:
        if flags:
            raise ConfigurationError(
                f"{file} and --{next(iter(flags)).replace('_', '-')} contradict each other",
                "describe guests either in the file or by flags",
            )
        return load(file)
    if "port" not in flags:
        raise ConfigurationError(
            "nothing to serve: no file and no --port",
            "guestwire run --socket-path PATH --port PORT, or guestwire run CONFIG.toml",
        )
    if cpus := flags.get("cpus"):
        try:
            flags["cpus"] = [int(cpu) for cpu in cpus.split(",")]
        except ValueError as error:
            raise ConfigurationError(f"--cpus {cpus}: {error}", "give numbers, such as 2,3") from error
    process = {"max_pinned": flags.pop("max_pinned", None)}
    try:
        return check(msgspec.convert({"guest": [flags], **process}, Configuration))
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"wrong flag: {error}", "guestwire run --help") from error

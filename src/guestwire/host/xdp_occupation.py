"""Who has an interface's place for an XDP program, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from guestwire.errors import HostError
from guestwire.host import bpf
from guestwire.host.interface import AttachedProgram

PROGRAM_NAME: Final = b"guestwire"
"""What the kernel calls ours."""

_BPF_LINK: Final = "anon_inode:bpf_link"


def occupied_error(name: str, programs: tuple[AttachedProgram, ...]) -> HostError:
    """The error that interface ``name`` has an XDP program already, with what is known of it."""
    if not programs:
        return HostError(
            f"an interface above {name} (a bond, bridge or VLAN) has an XDP program already",
            "ip link show | grep xdp",
        )
    program = programs[0]
    program_name = bpf.program_name(program.id)
    known_as = f" named {program_name!r}" if program_name else ""
    message = f"interface {name} has an XDP program already: number {program.id}{known_as}, "
    message += f"in {program.mode} mode"
    holders = ", ".join(_holders(program.id))
    if program_name == PROGRAM_NAME.decode():
        who = holders or "another guestwire process, which cannot be seen from here,"
        return HostError(
            f"{message}; {who} serves guests with it",
            "have that process serve this guest as well: describe both in its CONFIG.toml (guestwire status "
            "shows what it serves); or use another interface",
        )
    look = f"find out what it is for: bpftool prog show id {program.id}"
    if holders:
        return HostError(f"{message}; {holders} holds it", f"{look}; or use another interface")
    return HostError(
        message, f"{look}; if nobody needs it, ip link set dev {name} xdp off; or use another interface"
    )


def _holders(program_id: int) -> list[str]:
    """The processes that keep a program attached by a BPF link, as far as we may look."""
    pattern = re.compile(rf"^prog_id:\s*{program_id}$", re.MULTILINE)
    found: dict[int, str] = {}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        process = descriptor.parent.parent
        try:
            if str(descriptor.readlink()) != _BPF_LINK:
                continue
            if pattern.search((process / "fdinfo" / descriptor.name).read_text()):
                command = (process / "comm").read_text().strip()
                found[int(process.name)] = f"process {process.name} ({command})"
        except OSError:  # it has ended, or is not ours to look at
            continue
    return [found[number] for number in sorted(found)]

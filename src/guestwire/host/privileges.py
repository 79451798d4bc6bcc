"""The rights of this process, and what to say when they do not suffice."""

from __future__ import annotations

import enum
import re
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from guestwire.errors import HostError

_PROC_STATUS: Final = Path("/proc/self/status")
_USER_NAMESPACE: Final = Path("/proc/self/ns/user")

# The inode number of the first user namespace never changes (PROC_USER_INIT_INO, linux/proc_ns.h).
_INITIAL_USER_NAMESPACE_INODE: Final = 0xEFFFFFFD

_GRANT: Final = (
    "run it as root, or in a systemd service with "
    "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_IPC_LOCK"
)


class Capability(enum.IntEnum):
    """Those of ``linux/capability.h`` that matter here, by their bit numbers."""

    CAP_NET_ADMIN = 12
    CAP_NET_RAW = 13
    CAP_IPC_LOCK = 14
    CAP_SYS_ADMIN = 21
    CAP_BPF = 39


def effective_capabilities(status: Path = _PROC_STATUS) -> frozenset[Capability]:
    """The capabilities that this process may use now, out of those that matter.

    CAP_SYS_ADMIN includes CAP_BPF, as it does for the kernel (``bpf_capable``).
    """
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    bits = int(match[1], 16) if match else 0
    held = frozenset(capability for capability in Capability if bits >> capability & 1)
    return held | {Capability.CAP_BPF} if Capability.CAP_SYS_ADMIN in held else held


def in_initial_user_namespace() -> bool:
    """Whether capabilities of this process count everywhere, not only in a user namespace."""
    try:
        return _USER_NAMESPACE.stat().st_ino == _INITIAL_USER_NAMESPACE_INODE
    except OSError:
        # A kernel without user namespaces.
        return True


def permission_error(
    action: str,
    required: AbstractSet[Capability],
    *,
    held: AbstractSet[Capability] | None = None,
    initial_user_namespace: bool | None = None,
) -> HostError:
    """The error that the kernel does not permit something, with the reason that the facts suggest.

    Args:
        action: what is not permitted, such as "loading an XDP program".
        required: the capabilities that it takes.
        held: the effective capabilities, if they were looked up before.
        initial_user_namespace: whether they count everywhere, if that was looked up before.
    """
    held = effective_capabilities() if held is None else held
    if initial_user_namespace is None:
        initial_user_namespace = in_initial_user_namespace()
    missing = sorted(capability.name for capability in required - held)
    if missing:
        return HostError(f"{action} is not permitted: this process lacks {', '.join(missing)}", _GRANT)
    if not initial_user_namespace:
        return HostError(
            f"{action} is not permitted: this process is in a user namespace, where its "
            "capabilities do not count for that",
            "run it outside the user namespace (in a privileged container, if in one)",
        )
    return HostError(
        f"{action} is not permitted, though this process has the capabilities: a security "
        "policy (lockdown, SELinux, seccomp) forbids it",
        "cat /sys/kernel/security/lockdown; dmesg | tail",
    )

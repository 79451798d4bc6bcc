"""Preferred busy polling: system calls on a socket run the NIC's driver, in place of its interrupts.

The kernel polls the NAPI instance that it has noted for the socket, SO_INCOMING_NAPI_ID; without one the
calls do nothing (kernel, networking/napi.rst, "Busy polling").  Before Linux 6.13 an AF_XDP socket learned
it from the first frame or call, in any mode.  Since then it has it from the bind on or not at all: only in
zero-copy mode, and only from drivers that say which NAPI instance serves a queue.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from guestwire.errors import GuestwireError, HostError
from guestwire.host import af_xdp
from guestwire.host.capabilities import KernelVersion, kernel_version
from guestwire.host.privileges import Capability, permission_error

# asm-generic/socket.h; Python has no names for them.
SO_BUSY_POLL: Final = 46
SO_INCOMING_NAPI_ID: Final = 56
SO_PREFER_BUSY_POLL: Final = 69
SO_BUSY_POLL_BUDGET: Final = 70

_ANY_TIME_US: Final = 20  # but 0: a call that does not wait polls once
_NOTED_BY_BIND: Final = KernelVersion(6, 13)


def prefer_busy_polling(polled: socket.socket, budget: int) -> None:
    """Have calls on a socket poll its queue, and leave the queue's interrupts off while they come.

    Args:
        polled: the socket, of any family.
        budget: how many frames the driver takes in one call, up to 65,535.

    Raises:
        GuestwireError: the kernel does not know an option, or does not permit it.
    """
    options = (
        ("SO_PREFER_BUSY_POLL", SO_PREFER_BUSY_POLL, 1),
        ("SO_BUSY_POLL", SO_BUSY_POLL, _ANY_TIME_US),
        ("SO_BUSY_POLL_BUDGET", SO_BUSY_POLL_BUDGET, budget),
    )
    for name, option, value in options:
        try:
            polled.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError as error:
            raise _refusal(f"{name} = {value}", error) from error


def require_busy_polling(budget: int) -> None:
    """Make sure that `prefer_busy_polling` works here: tried on a socket that is good for nothing else.

    Raises:
        GuestwireError: as there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as tried:
        prefer_busy_polling(tried, budget)


def polls_queue(bound: socket.socket) -> bool:
    """Whether calls on a bound AF_XDP socket poll its queue; before Linux 6.13, they may come to it."""
    if kernel_version() < _NOTED_BY_BIND:
        return True
    try:
        return bound.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID) != 0
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return False  # CONFIG_NET_RX_BUSY_POLL is off


def borrowed(descriptor: int) -> socket.socket:
    """A socket of family AF_XDP for a descriptor of somebody else's, which closing it leaves open."""
    # Told what it is, Python does not ask for its name, which an AF_XDP socket does not have.
    return socket.socket(af_xdp.AF_XDP, socket.SOCK_RAW, 0, fileno=os.dup(descriptor))


def _refusal(what: str, error: OSError) -> GuestwireError:
    if error.errno == errno.EPERM:
        # Preferring it takes the capability, and so does a budget above the kernel's own.
        return permission_error(f"busy polling ({what})", {Capability.CAP_NET_ADMIN})
    if error.errno == errno.ENOPROTOOPT:
        return HostError(
            f"this kernel does not know preferred busy polling ({what}: {error.strerror})",
            "leave busy-poll out, or use Linux 5.11 or later with CONFIG_NET_RX_BUSY_POLL=y",
        )
    return HostError(f"busy polling: the kernel refuses {what}: {error.strerror}", "leave busy-poll out")

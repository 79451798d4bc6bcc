"""Which AF_XDP modes a queue of an interface really offers: found out by binding a socket to it.

What a driver announces (``Interface.xdp``) is not the whole truth: a virtio-net interface announces
zero copy and refuses it for want of a DMA device, and any driver may object to the MTU.  A bind
needs no XDP program, and no frame reaches the socket.  But a bind in zero-copy mode takes the queue
from its driver for a moment, which on some NICs resets the link: probe only on request, and never
an interface that the host itself needs.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from guestwire.errors import HostError
from guestwire.host import af_xdp, netlink
from guestwire.host.busy_polling import polls_queue
from guestwire.host.interface import Interface

CHUNK_BYTES: Final = 4096
"""The largest chunk that every kernel with 4 KiB pages accepts (``xdp_umem_reg``)."""

LARGEST_ZERO_COPY_MTU: Final = 3814
"""The largest MTU that leaves a frame in one chunk of 4096 bytes in zero-copy mode.

The kernel takes 256 bytes for XDP, rounds the rest down to 128 and wants the MTU plus 26 in it: the
Ethernet header, two VLAN tags and the frame check sequence (``xp_assign_dev``).
"""

_CHUNKS: Final = 16
_RING_ENTRIES: Final = 64
_RELEASE_TIMEOUT_S: Final = 2.0
_RETRY_INTERVAL_S: Final = 0.01

_BIND_FLAGS: Final = {"copy": af_xdp.XDP_COPY, "zero-copy": af_xdp.XDP_ZEROCOPY}


@dataclass(frozen=True, slots=True)
class BindResult:
    """Whether a bind succeeded.

    Attributes:
        available: whether the mode is to be had.
        reason: why not, in words; empty if it is.
        polls_queue: whether calls on the socket could poll the queue (`guestwire.host.busy_polling`).
    """

    available: bool
    reason: str
    polls_queue: bool = False


@dataclass(frozen=True, slots=True)
class AfXdpProbe:
    """What one queue of an interface offers.

    Attributes:
        queue: which one, counted from 0.
        copy: the mode in which the kernel copies frames (guestwire's ``direct`` and ``bounce``).
        zero_copy: the mode in which the NIC reads and writes the registered memory.
    """

    queue: int
    copy: BindResult
    zero_copy: BindResult


def probe(interface: Interface, queue: int = 0) -> AfXdpProbe:
    """Bind a small memory area to a queue in copy and in zero-copy mode, and give the queue back.

    Raises:
        HostError: AF_XDP sockets cannot be had at all, the queue does not exist, or the interface
            carries the host's default route.
    """
    interface.require_queue(queue)
    if interface.carries_default_route:
        raise HostError(
            f"interface {interface.name} carries this host's default route and is not probed, "
            "since a bind can reset it",
            f"guestwire doctor {interface.name}, which reports what its driver announces",
        )
    copy = _try_bind(interface, queue, "copy", patience_s=0)
    # The kernel lets go of a queue some time after the socket is closed, and before 6.14 does not
    # say when: the queue may be busy with our own first bind.
    patience_s = _RELEASE_TIMEOUT_S if copy.available else 0
    zero_copy = _try_bind(interface, queue, "zero-copy", patience_s=patience_s)
    return AfXdpProbe(queue=queue, copy=copy, zero_copy=zero_copy)


def _try_bind(interface: Interface, queue: int, mode: str, *, patience_s: float) -> BindResult:
    """Bind, and give the queue back; waits ``patience_s`` for a queue that is busy."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            polls = _bind_once(interface.index, queue, _BIND_FLAGS[mode])
            break
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                return BindResult(False, _explain(error, interface, queue, mode))
        time.sleep(_RETRY_INTERVAL_S)
    netlink.wait_until_released(interface.index, queue, timeout_s=_RELEASE_TIMEOUT_S)
    return BindResult(True, "", polls)


def _bind_once(interface_index: int, queue: int, flags: int) -> bool:
    with mmap.mmap(-1, CHUNK_BYTES * _CHUNKS) as area, prepared_socket(area) as xdp_socket:
        af_xdp.bind(xdp_socket, interface_index, queue, flags | af_xdp.XDP_USE_NEED_WAKEUP)
        return polls_queue(xdp_socket)


def prepared_socket(area: mmap.mmap) -> socket.socket:
    """An AF_XDP socket with a memory area and all four rings, ready to bind.

    Args:
        area: whole pages, which the kernel pins until the socket is closed.

    Raises:
        HostError: an AF_XDP socket cannot be made.
        OSError: the area cannot be registered; ``ENOBUFS`` beyond the limit on locked memory.
    """
    try:
        xdp_socket = af_xdp.open_socket()
    except OSError as error:
        raise af_xdp.socket_error(error) from error
    try:
        base = ctypes.c_char.from_buffer(area)
        # struct xdp_umem_reg: address, length, chunk size, headroom, flags, tx_metadata_len
        registration = struct.pack(
            "=QQIIII",
            ctypes.addressof(base),
            len(area),
            CHUNK_BYTES,
            0,
            af_xdp.XDP_UMEM_UNALIGNED_CHUNK_FLAG,
            0,
        )
        # A Python mmap cannot be closed while something points into it.
        del base
        xdp_socket.setsockopt(af_xdp.SOL_XDP, af_xdp.XDP_UMEM_REG, registration)
        for ring in (
            af_xdp.XDP_UMEM_FILL_RING,
            af_xdp.XDP_UMEM_COMPLETION_RING,
            af_xdp.XDP_RX_RING,
            af_xdp.XDP_TX_RING,
        ):
            xdp_socket.setsockopt(af_xdp.SOL_XDP, ring, _RING_ENTRIES)
    except BaseException:
        xdp_socket.close()
        raise
    return xdp_socket


def _explain(error: OSError, interface: Interface, queue: int, mode: str) -> str:
    name, driver = interface.name, interface.driver or "unknown"
    reasons = {
        errno.EOPNOTSUPP: f"driver {driver} has no zero-copy mode in this kernel",
        errno.EBUSY: f"another AF_XDP socket, or memory provider, holds queue {queue} of {name}",
        errno.ENETDOWN: f"{name} is down",
        errno.ENOBUFS: "the limit on locked memory (RLIMIT_MEMLOCK) is used up",
    }
    if mode == "zero-copy":
        too_long = f"MTU {interface.mtu} is over {LARGEST_ZERO_COPY_MTU}: a frame needs two chunks"
        reasons[errno.EINVAL] = (
            too_long
            if interface.mtu > LARGEST_ZERO_COPY_MTU
            else f"driver {driver} refuses (it may have no DMA device of its own)"
        )
    return reasons.get(error.errno or 0, f"the kernel refuses: {error.strerror}")

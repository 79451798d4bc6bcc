"""How a frame lies in an AF_XDP chunk, and which guest buffers can take one.

The kernel or the NIC may write ``chunk - 256 - headroom`` bytes from a frame's first byte on, whatever the
interface's MTU says. A guest's buffer qualifies only if it has room for all of that. So headroom shrinks
what may be written to just above the largest frame: Linux guests post buffers of 1,530 to 1,536 bytes.
"""

from __future__ import annotations

import dataclasses

FRAME_BYTES = 4096  # of a bounce frame
CHUNK = 4096  # the largest: it needs the least kernel memory for a window of a given size
KERNEL_HEADROOM = 256
ETHERNET_AND_VLAN = 18
ZERO_COPY_SLACK = 26  # the kernel binds in zero-copy mode only if MTU + 26 bytes fit
TAIL_RESERVE = 448  # Linux 7.2 wants this much of a chunk behind the headroom


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """How a frame lies in a chunk.

    Attributes:
        chunk: bytes of a chunk.
        headroom: bytes that the kernel leaves free before a frame, on top of its own 256.
        writable: bytes that the kernel or the NIC may write.
        room_needed: bytes behind its virtio_net_hdr that a guest's buffer must have.
        longest_frame: bytes of the largest frame that is sent or received.
    """

    chunk: int
    headroom: int
    writable: int
    room_needed: int
    longest_frame: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Driver:
    """What is known of a driver in zero-copy mode.

    Attributes:
        step: it programs the size of its receive buffers in multiples of so many bytes.
        stops_at_mtu: measured: it drops frames above the MTU (with a VLAN tag) rather than store them.
    """

    step: int
    stops_at_mtu: bool


_DRIVERS = {
    # Measured with Linux 7.2: 1,518 bytes accepted, 1,600 not; buffers in steps of 1 KiB.
    "igb": _Driver(1024, True),
    # Measured with Linux 7.2: frames of 1,600 bytes are delivered at MTU 1,500.
    "virtio_net": _Driver(128, False),
}
_UNKNOWN_DRIVER = _Driver(1024, False)


def largest_mtu() -> int:
    """Return the largest MTU whose frames fit in one chunk, in bytes."""
    return CHUNK - KERNEL_HEADROOM - ETHERNET_AND_VLAN


def _geometry(writable: int, longest: int, room_needed: int) -> Geometry:
    writable = max(writable, TAIL_RESERVE)
    return Geometry(CHUNK, CHUNK - KERNEL_HEADROOM - writable, writable, room_needed, longest)


def copy_mode(mtu: int) -> Geometry:
    """Return the geometry for copy mode: the kernel writes no byte more than the frame has."""
    longest = mtu + ETHERNET_AND_VLAN
    return _geometry(longest, longest, max(longest, TAIL_RESERVE))


def zero_copy_mode(mtu: int, driver: str | None) -> Geometry | None:
    """Return the geometry for a driver's zero-copy mode; None if its frames do not fit one chunk."""
    known = _DRIVERS.get(driver or "", _UNKNOWN_DRIVER)
    writable = -(-(mtu + ZERO_COPY_SLACK) // known.step) * known.step
    if writable > CHUNK - KERNEL_HEADROOM:
        return None
    longest = mtu + ETHERNET_AND_VLAN
    return _geometry(writable, longest, longest if known.stops_at_mtu else writable)

"""How a frame lies in an AF_XDP chunk, and which guest buffers can take one.

The kernel or the NIC may write ``chunk - 256 - headroom`` bytes from a frame's first byte on, whatever the
interface's MTU says. A guest's buffer qualifies only if it has room for all of that. So headroom shrinks
what may be written to just above the largest frame, in the steps in which the driver programs its NIC.

Linux guests post buffers of 1,536 bytes, or 1,530 if they are not mergeable: with an MTU of 1,500 they have
room for all frames of that MTU, with two VLAN tags or one, but not for what a NIC lets in beyond.
"""

from __future__ import annotations

import dataclasses

FRAME_BYTES = 4096  # of a bounce frame
LARGEST_CHUNK = 4096  # needs the least kernel memory for a window of a given size
SMALLEST_CHUNK = 2048
KERNEL_HEADROOM = 256
ETHERNET_AND_VLAN = 18
ETHERNET_AND_VLANS = 22  # with a second tag (IEEE 802.1ad)
ZERO_COPY_SLACK = 26  # the kernel binds in zero-copy mode only if MTU + 26 bytes fit
LARGEST_MTU = 9216  # where frames may lie in several buffers: what switches call jumbo frames
# Linux guests' smallest mergeable buffers: an Ethernet frame of MTU 1,500 with a VLAN tag, and the header.
MERGEABLE_ROOM = 1518
NO_BUFFER_HAS = 1 << 16  # bytes of room: the guest's own buffers are never posted
TAIL_RESERVE = 448  # Linux 7.2 wants this much of a chunk behind the headroom


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """How a frame lies in a chunk.

    Attributes:
        chunk: bytes of a chunk.
        headroom: bytes that the kernel leaves free before a frame, on top of its own 256.
        writable: bytes that the kernel or the NIC may write.
        room_needed: bytes behind its virtio_net_hdr that a guest's buffer must have; no longer frame is
            received in one piece.
        longest_frame: bytes of the largest frame that is sent or received.
        several_buffers: whether a received frame may lie in several buffers.
    """

    chunk: int
    headroom: int
    writable: int
    room_needed: int
    longest_frame: int
    several_buffers: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Driver:
    """What is known of a driver in zero-copy mode.

    Attributes:
        step: it programs the size of its receive buffers in multiples of so many bytes.
        repeats_when_starved: when the fill ring runs dry it delivers buffers again that are no longer its
            own, so the fill ring must never run dry.
    """

    step: int
    repeats_when_starved: bool = False


_DRIVERS = {
    # Measured with Linux 7.2: buffers in steps of 1 KiB; of 23,732 deliveries through a starved ring, 12,394
    # were of buffers that the NIC had given back before.
    "igb": Driver(1024, repeats_when_starved=True),
    # Measured with Linux 7.2: buffers in steps of 128 bytes; no delivery twice.
    "virtio_net": Driver(128),
}
_UNKNOWN_DRIVER = Driver(1024)


def known(driver: str | None) -> Driver:
    """Return what is known of a driver; of an unknown one the worst is assumed of its buffers."""
    return _DRIVERS.get(driver or "", _UNKNOWN_DRIVER)


def largest_mtu(*, multi_buffer: bool) -> int:
    """Return the largest MTU that a port serves, in bytes.

    Args:
        multi_buffer: whether the kernel lets frames lie in several buffers. Else each fits in one chunk.
    """
    return LARGEST_MTU if multi_buffer else LARGEST_CHUNK - KERNEL_HEADROOM - ETHERNET_AND_VLAN


def largest_zero_copy_mtu(driver: str | None) -> int:
    """Return the largest MTU whose frames fit in one chunk as the driver lays them out, in bytes."""
    step = known(driver).step
    return (LARGEST_CHUNK - KERNEL_HEADROOM) // step * step - ZERO_COPY_SLACK


def _geometry(chunk: int, writable: int, longest: int, room_needed: int) -> Geometry:
    return Geometry(chunk, chunk - KERNEL_HEADROOM - writable, writable, room_needed, longest)


def copy_mode(mtu: int, *, mergeable: bool = False, in_place: bool = False) -> Geometry:
    """Return the geometry for copy mode: the kernel writes no byte more than the frame has.

    A frame that does not fit in one chunk goes over several mergeable buffers of the guest, or else over
    several bounce frames.

    Args:
        mtu: the interface's, in bytes.
        mergeable: the guest's buffers are.
        in_place: the guest's buffers are posted. Linux's, if they are not mergeable, have room for one VLAN
            tag: no frame is received that has two, and a payload of the MTU.
    """
    longest = mtu + ETHERNET_AND_VLANS
    least, largest = mtu + ETHERNET_AND_VLAN, LARGEST_CHUNK - KERNEL_HEADROOM
    if least > largest:
        own = mergeable and in_place
        geometry = _geometry(
            LARGEST_CHUNK,
            MERGEABLE_ROOM if own else largest,
            longest,
            MERGEABLE_ROOM if own else NO_BUFFER_HAS,
        )
        return dataclasses.replace(geometry, several_buffers=True)
    longest = min(longest, largest)
    writable = max(least if in_place and not mergeable else longest, TAIL_RESERVE)
    return _geometry(LARGEST_CHUNK, writable, longest, writable)


def zero_copy_mode(
    mtu: int, driver: str | None, *, huge_pages: bool = True, trust_mtu: bool = False
) -> Geometry | None:
    """Return the geometry for a driver's zero-copy mode; None if its frames do not fit one chunk.

    Args:
        mtu: the interface's, in bytes.
        driver: its driver's name.
        huge_pages: the guest's memory is in large pieces. In scattered 4 KiB pages the smallest chunk
            crosses a border the least often, at the price of twice the kernel memory.
        trust_mtu: no longer frame ever comes from the wire. A NIC by itself does not see to that: measured
            with Linux 7.2 at MTU 1,500, igb takes frames of up to 1,532 bytes, virtio_net of 1,600.
    """
    if mtu > largest_zero_copy_mtu(driver):
        return None
    step = known(driver).step
    writable = max(-(-(mtu + ZERO_COPY_SLACK) // step) * step, TAIL_RESERVE)
    chunk = LARGEST_CHUNK if huge_pages else max(SMALLEST_CHUNK, KERNEL_HEADROOM + writable)
    room_needed = mtu + ETHERNET_AND_VLAN if trust_mtu else writable
    return _geometry(chunk, writable, mtu + ETHERNET_AND_VLANS, room_needed)

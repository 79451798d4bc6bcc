"""Watches whether anything is ever seen of a guest that was started: what is wrong with it is rarely said.

Memory that is not shared is the common fault: the frontend is there, rings run, and all that the guest writes
stays in a copy of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guestwire.datapath.window import Window
from guestwire.queue_pairs import Ring
from guestwire.vhost_user.memory import MemoryRegion
from guestwire.vhost_user.rings import area_lengths

DRIVER_SECONDS = 60.0  # after which it is said that no driver has come
MEMORY_SECONDS = 5.0  # between the driver's features and its memory
KICKS = 5  # between two looks: a frontend may send one or two by itself
BEGINNING = 2 << 20  # of the guest's memory, where every machine has something: firmware, a kernel, tables

_SHARE = "share it: -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem"
NOT_STARTED = (
    f"the guest's driver has not started the device for {DRIVER_SECONDS:.0f} seconds: the guest still boots, "
    "or it has no virtio-net driver; dmesg | grep virtio_net, in the guest"
)
NO_MEMORY = f"the guest's driver has started, and the frontend shares none of its memory; {_SHARE}"
EMPTY_MEMORY = f"the guest's driver has started, and its memory is empty, as if it were not shared; {_SHARE}"
WAITING = (
    "another frontend waits for this socket, which has one at a time; give each guest a socket of its own"
)


def empty_ring(ring: int) -> str:
    """Say that a ring is kicked in vain."""
    return (
        f"the guest's driver kicks ring {ring}, which stays empty, as if its memory were not shared; {_SHARE}"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look at a guest shows.

    Attributes:
        accepted: its driver has accepted features.
        shared: the frontend shares memory.
        running: rings run.
        empty: those of them in which no buffer was ever made available.
        blank: all of them are, and so is the beginning of the guest's memory.
        available: what the driver has made available in each of the others.
    """

    accepted: bool = False
    shared: bool = False
    running: bool = False
    empty: tuple[int, ...] = ()
    blank: bool = False
    available: tuple[bytes, ...] = ()


def see(
    window: Window | None,
    regions: Sequence[MemoryRegion],
    rings: dict[int, Ring],
    *,
    accepted: bool,
    packed: bool,
) -> Seen:
    """Look at a guest's memory; its lock is held.

    Args:
        window: the memory.
        regions: what it is made of.
        rings: the running rings.
        accepted: whether the driver has accepted features.
        packed: whether they say that rings are packed ones.
    """
    if window is None:
        return Seen(accepted=accepted)
    empty: list[int] = []
    available: list[bytes] = []
    for index, ring in sorted(rings.items()):
        made_available = _made_available(window, ring, packed)
        if _zero(made_available):
            empty.append(index)
        else:
            available.append(made_available)
    return Seen(
        accepted=accepted,
        shared=True,
        running=bool(rings),
        empty=tuple(empty),
        blank=len(empty) == len(rings) > 0 and _zero(_beginning(window, regions)),
        available=tuple(available),
    )


def _made_available(window: Window, ring: Ring, packed: bool) -> bytes:
    """Return what a driver must write to make a buffer available, if it is the first one or the next.

    Of a split ring the available ring between its flags and used_event, of a packed one the descriptors.
    """
    c = ring.configuration
    if packed:
        length, _, _ = area_lengths(c.size, packed)
        return window.read(window.translate_user(c.descriptor_address, length), length)
    return window.read(window.translate_user(c.available_address + 2, 2 + 2 * c.size), 2 + 2 * c.size)


def _beginning(window: Window, regions: Sequence[MemoryRegion]) -> bytes:
    first = min(regions, key=lambda region: region.guest_address)
    length = min(first.size, BEGINNING)
    return window.read(window.translate_guest(first.guest_address, length), length)


def _zero(data: bytes) -> bool:
    return data == bytes(len(data))


class StartWatch:
    """Compares a guest at one look, half a second after the last one, with what it was.

    Args:
        now: when the frontend came, in seconds of a monotonic clock.

    Attributes:
        content: whether the guest is at work, and nothing is left to be watched.
    """

    def __init__(self, now: float) -> None:
        self.content = False
        self._came = now
        self._accepted: float | None = None
        self._ran = False
        self._last: tuple[Seen, int] = (Seen(), 0)
        self._kicked_in_vain: int | None = None  # a ring

    def look(self, now: float, seen: Seen, kicks: int) -> list[str]:
        """Return what is wrong now, in sentences that stay the same as long as it is.

        Args:
            now: the time.
            seen: what is seen.
            kicks: how many kicks have come.
        """
        (before, kicks_before), self._last = self._last, (seen, kicks)
        self._ran |= seen.running
        self.content |= seen.running and not seen.empty
        if not seen.accepted or seen.shared:
            self._accepted = None
        elif self._accepted is None:
            self._accepted = now
        if self._accepted is not None:
            return [NO_MEMORY] if now - self._accepted >= MEMORY_SECONDS else []
        if not self._ran:
            return [NOT_STARTED] if now - self._came >= DRIVER_SECONDS else []
        if seen.blank and before.blank:
            return [EMPTY_MEMORY]
        still = seen.available == before.available and seen.empty == before.empty
        if still and seen.empty and kicks - kicks_before >= KICKS:
            self._kicked_in_vain = seen.empty[0]
        return [empty_ring(self._kicked_in_vain)] if self._kicked_in_vain in seen.empty else []

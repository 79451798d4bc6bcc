"""Rings that break the rules of virtio: the ring stops with a reason, and starts again after a reset.

They are written by hand into the memory of a guest that was fine until then, while the other guest of the
process goes on exchanging frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from backend.house import House, house, status
from guestwire.testing import Block, FakeGuest, FrameStream, RawRing, SharedMemory
from guestwire.testing.raw_ring import INDIRECT, NEXT, WRITE, pack_descriptor
from guestwire.virtio.ring_errors import RingError

MIB = 1 << 20
NOWHERE = 1 << 50  # no guest's memory is there
RX, TX = 0, 1
POSTED = 8  # receive buffers: so few that the device takes them all
HEAD = 200  # an entry of the descriptor table that the driver does not use yet

Break = Callable[[RawRing, Block], None]
"""Makes something wrong available in a ring; the block is guest memory to use for it."""


@pytest.fixture(scope="module")
def inhabited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


def offer(length: int = 100, flags: int = 0, next_index: int = 0, address: int | None = None) -> Break:
    """One descriptor, which refers to the block unless an address is given."""

    def commit(raw: RawRing, block: Block) -> None:
        raw.describe(HEAD, block.guest_address if address is None else address, length, flags, next_index)
        raw.offer(HEAD)

    return commit


def indirect(*flags: int, next_index: int = 0) -> Break:
    """A table in the block, with one descriptor for each of these flags, that refers to the block as well."""

    def commit(raw: RawRing, block: Block) -> None:
        entries = b"".join(pack_descriptor(block.guest_address, 64, one, next_index) for one in flags)
        block.bytes[: len(entries)] = entries
        raw.describe(HEAD, block.guest_address, len(entries), INDIRECT)
        raw.offer(HEAD)

    return commit


def loop(raw: RawRing, block: Block) -> None:
    raw.describe(HEAD, block.guest_address, 10, NEXT, HEAD + 1)
    raw.describe(HEAD + 1, block.guest_address, 10, NEXT, HEAD)
    raw.offer(HEAD)


def jump(raw: RawRing, block: Block) -> None:
    raw.available_index += raw.size + 1


def go_back(raw: RawRing, block: Block) -> None:
    raw.available_index -= 1


def no_such_head(raw: RawRing, block: Block) -> None:
    raw.offer(0xFFFF)


def again(raw: RawRing, block: Block) -> None:
    raw.offer(0)


@dataclass(frozen=True)
class Broken:
    """A way to break a ring, and the rule that the device must name."""

    name: str
    ring: int
    commit: Break
    error: RingError


BROKEN = [
    Broken("a loop", TX, loop, RingError.CHAIN_TOO_LONG),
    Broken("a loop in a table", TX, indirect(NEXT, NEXT), RingError.CHAIN_TOO_LONG),
    Broken("the index jumps", TX, jump, RingError.AVAILABLE_INDEX),
    Broken("the index goes back", TX, go_back, RingError.AVAILABLE_INDEX),
    Broken("the index jumps, receiving", RX, jump, RingError.AVAILABLE_INDEX),
    Broken("no such head", TX, no_such_head, RingError.HEAD_OUT_OF_RANGE),
    Broken("no such head, receiving", RX, no_such_head, RingError.HEAD_OUT_OF_RANGE),
    Broken("a head twice", RX, again, RingError.HEAD_IN_FLIGHT),
    Broken("no such next", TX, offer(flags=NEXT, next_index=256), RingError.NEXT_OUT_OF_RANGE),
    Broken("no such next in a table", TX, indirect(NEXT, next_index=1), RingError.NEXT_OUT_OF_RANGE),
    Broken("outside memory", TX, offer(address=NOWHERE), RingError.ADDRESS_OUTSIDE_MEMORY),
    Broken("over the end", TX, offer(address=4 * MIB - 50), RingError.ADDRESS_OUTSIDE_MEMORY),
    Broken("wraps", TX, offer(address=2**64 - 50), RingError.ADDRESS_OUTSIDE_MEMORY),
    Broken("4 GiB", TX, offer(length=2**32 - 1), RingError.ADDRESS_OUTSIDE_MEMORY),
    Broken(
        "outside memory, receiving", RX, offer(2048, WRITE, address=NOWHERE), RingError.ADDRESS_OUTSIDE_MEMORY
    ),
    Broken("to be written, sending", TX, offer(flags=WRITE), RingError.DIRECTION),
    Broken("to be read, receiving", RX, offer(2048), RingError.DIRECTION),
    Broken("no bytes", TX, offer(0), RingError.ZERO_LENGTH),
    Broken("nested tables", TX, indirect(INDIRECT), RingError.INDIRECT_NESTED),
    Broken("table and next", TX, offer(64, INDIRECT | NEXT), RingError.INDIRECT_WITH_NEXT),
    Broken("odd table", TX, offer(24, INDIRECT), RingError.INDIRECT_LENGTH),
    Broken("empty table", TX, offer(0, INDIRECT), RingError.INDIRECT_LENGTH),
    Broken("table outside", TX, offer(64, INDIRECT, address=NOWHERE), RingError.ADDRESS_OUTSIDE_MEMORY),
]


def ring_errors(house: House) -> dict[int, str | None]:
    return {ring.index: ring.error for ring in status(house.backend)["rogue"].rings}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_ring_stops_and_starts_again(inhabited: House, broken: Broken) -> None:
    mark = len(inhabited.backend.text())
    with (
        inhabited.undisturbed(),
        inhabited.visitor(),
        SharedMemory(4 * MIB) as memory,
        FakeGuest(inhabited.rogue, memory=memory, receive_buffers=POSTED) as guest,
    ):
        block = memory.allocate(4096)
        exchange(guest)
        ring = guest.rings[broken.ring]
        raw = ring.driver.raw
        before = bytes(raw.descriptor_table), bytes(raw.available_ring)
        broken.commit(raw, block)
        os.eventfd_write(ring.kick_fd, 1)
        assert ring.is_broken()
        other = guest.rings[1 - broken.ring]
        assert not other.is_broken(timeout=0)
        errors = ring_errors(inhabited)
        assert errors[other.index] is None
        assert (errors[ring.index] or "").startswith(broken.error.summary)
        (said,) = inhabited.last_complaints(mark)
        assert said.startswith(f"ring {ring.index} is stopped: {broken.error.summary}")
        assert broken.error.section in said
        assert said.endswith("; reset the guest's network device to go on")
        inhabited.neighbour.check()

        for each in guest.rings:
            guest.stop_ring(each)
        raw.descriptor_table[:], raw.available_ring[:] = before
        os.eventfd_read(ring.error_fd)
        for each in guest.rings:
            guest.start_ring(each)
        exchange(guest)
        assert ring_errors(inhabited) == {RX: None, TX: None}
        assert len(inhabited.last_complaints(mark)) == 1


def exchange(guest: FakeGuest) -> None:
    assert guest.pair.exchange(FrameStream((60, 1514)), 100, window=POSTED).received == 100

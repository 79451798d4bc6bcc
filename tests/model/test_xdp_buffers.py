"""The statement that the xdp port lives by: no buffer is lost or delivered twice.

A guest posts receive buffers and sends frames in random layouts; the kernel's side takes, delivers, reorders,
repeats and invents; the port is closed and attached again in between. After every step each buffer has one
owner, every byte that the guest or the wire sees is right, and nothing outside a buffer has changed.
"""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.chains import Driver
from unit.datapath.xdp_machine import BUFFER_SPACING, MODES, RECEIVE, SEND, XdpMachine

SIZE = 32  # descriptors of each of the guest's rings; the buffer of each has a place of its own
SOCKET_RING = 64
BOUNCE_FRAMES = 112  # 48 more than receiving leaves for sending
PAGE_BORDER = 3000  # where in its page a sent buffer begins: long ones cross into the next
LONGEST = 1518
HEADER_BYTES = 12
ADDRESS_BITS = (1 << 48) - 1

buffer_lengths = st.one_of(
    st.sampled_from([1, 11, 12, 13, 400, 1530, 1548, 2048, 3000]), st.integers(min_value=1, max_value=3000)
)
buffers = st.tuples(st.integers(min_value=0, max_value=70), buffer_lengths)
layouts = st.one_of(
    st.sampled_from([[(0, 2048)], [(5, 400)], [(0, 12), (0, 2000)]]),
    st.lists(buffers, min_size=1, max_size=3),
)
frame_lengths = st.one_of(st.sampled_from([14, 60, 128, 129, 1514, LONGEST]), st.integers(14, LONGEST))
cuts = st.lists(st.one_of(st.just(HEADER_BYTES), st.integers(1, 400)), min_size=1, max_size=4)
picks = st.lists(st.integers(min_value=0, max_value=63), min_size=1, max_size=16)
few_picks = st.lists(st.integers(min_value=0, max_value=63), min_size=1, max_size=4)


def content(number: int, length: int) -> bytes:
    """A frame that says which one it is, in every byte."""
    return (struct.pack("<I", number) * (length // 4 + 1))[:length]


class BufferMachine(RuleBasedStateMachine):
    """A guest, the xdp port, and the kernel's side of its socket."""

    guest: XdpMachine | None = None
    attached = False

    @initialize(
        mode=st.sampled_from(MODES),
        mergeable=st.sampled_from([True, True, False]),
        piece=st.sampled_from([BUFFER_SPACING, 4 * BUFFER_SPACING, 2 << 20]),
        most_pieces=st.sampled_from([17, 1, 3]),
        reserve=st.sampled_from([0, 8]),
        copy_headers=st.sampled_from([False, False, True]),
    )
    def start(self, **options: Any) -> None:
        if options["mode"] == "zero-copy":
            options["most_pieces"] = min(options["most_pieces"], 3)
        self.guest = XdpMachine(**options, size=SIZE, socket_ring=SOCKET_RING, bounce_frames=BOUNCE_FRAMES)
        self.rx = Driver(self.guest, self.guest.rx, RECEIVE)
        self.tx = Driver(self.guest, self.guest.tx, SEND + PAGE_BORDER)
        self.next_frame = 1
        self.delivered: dict[int, bytes] = {}  # by number, until the guest has got it
        self.last_seen = 0
        self.unsent: dict[int, bytes] = {}  # by number, until it is on the wire
        self.sending: dict[int, int] = {}  # number by head, while the chain is out
        self.forget_kernel()
        self.attached = True

    def forget_kernel(self) -> None:
        self.owned: list[int] = []  # addresses from the fill ring that have not come back
        self.arriving: list[bool] = []  # entries of the rx ring: whether they name an owned buffer
        self.completing: list[bool] = []  # entries of the completion ring: whether they name one of these:
        self.not_complete: list[tuple[int, bytes]] = []  # descriptors with the NIC, and what they held

    # --- the guest -----------------------------------------------------------------------------------

    @rule(layouts=st.lists(layouts, min_size=1, max_size=8), now=st.booleans())
    def post(self, layouts: list[list[tuple[int, int]]], now: bool) -> None:
        for layout in layouts:
            if len(layout) <= len(self.rx.free):
                self.rx.offer(layout)
        self.work_if(now)

    @rule(count=st.integers(min_value=1, max_value=SIZE), now=st.booleans())
    def post_large(self, count: int, now: bool) -> None:
        for _ in range(min(count, len(self.rx.free))):
            self.rx.offer([(0, 2048)])
        self.work_if(now)

    @rule(
        lengths=st.lists(frame_lengths, min_size=1, max_size=8), offset=st.integers(0, 70), now=st.booleans()
    )
    def send_whole(self, lengths: list[int], offset: int, now: bool) -> None:
        for length in lengths:
            self.send(length, offset, [])
        self.work_if(now)

    @rule(frames=st.lists(st.tuples(frame_lengths, cuts), min_size=1, max_size=4), now=st.booleans())
    def send_pieces(self, frames: list[tuple[int, list[int]]], now: bool) -> None:
        for length, ends in frames:
            self.send(length, 0, ends)
        self.work_if(now)

    def send(self, length: int, offset: int, cuts: list[int]) -> None:
        data = bytes(HEADER_BYTES) + content(self.next_frame, length)
        ends = [*sorted({cut for cut in cuts if cut < len(data)}), len(data)]
        layout = [(offset, end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
        if len(layout) <= len(self.tx.free):
            head = self.tx.offer(layout, data)
            self.unsent[self.next_frame] = data[HEADER_BYTES:]
            self.sending[head] = self.next_frame
            self.next_frame += 1

    # --- the worker ----------------------------------------------------------------------------------

    @rule()
    def work(self) -> None:
        assert self.guest is not None
        self.guest.run()
        self.receive()

    def work_if(self, now: bool) -> None:
        if now:
            self.work()

    def receive(self) -> None:
        """Let the guest look at what came back."""
        used = self.rx.take_used()
        while used:
            _, chain, length = used.pop(0)
            data = self.rx.read(chain)[:length]
            if length == 0:
                continue
            assert data[:10] == bytes(10)
            (count,) = struct.unpack_from("<H", data, 10)
            for _ in range(count - 1):
                _, chain, length = used.pop(0)
                data += self.rx.read(chain)[:length]
            (number,) = struct.unpack_from("<I", data, HEADER_BYTES)
            assert self.delivered.pop(number, None) == data[HEADER_BYTES:], (
                f"frame {number} is not as it was sent"
            )
            assert number > self.last_seen, "frames are out of their order, or repeated"
            self.last_seen = number
        for head, chain, length in self.tx.take_used():
            assert length == 0
            self.sending.pop(head)
            assert not any(
                a >> 48 == head and a & ADDRESS_BITS < self.bounce for a, _ in self.not_complete
            ), f"chain {head} came back before the kernel was through with it"
            for _, address, size in chain:
                self.tx.store(address, b"\xee" * size)  # what was returned may be written

    @property
    def bounce(self) -> int:
        assert self.guest is not None
        return self.guest.window.bounce_offset - self.guest.socket.umem_offset

    # --- the kernel and the NIC ----------------------------------------------------------------------

    @precondition(lambda self: self.guest.socket.waiting.fill)
    @rule(most=st.integers(min_value=1, max_value=SOCKET_RING))
    def take_buffers(self, most: int) -> None:
        assert self.guest is not None
        self.owned += self.guest.socket.take_fill(most)

    @precondition(lambda self: self.owned or self.guest.socket.waiting.fill)
    @rule(which=picks, length=frame_lengths, taken=st.integers(0, SOCKET_RING), now=st.booleans())
    def deliver(self, which: list[int], length: int, taken: int, now: bool) -> None:
        self.take_buffers(taken)
        for pick in which:
            if self.owned and self.room():
                self.arrive(self.owned.pop(pick % len(self.owned)), length)
        self.work_if(now)

    @precondition(lambda self: self.owned)
    @rule(pick=st.integers(0, 63), moved=st.integers(min_value=1, max_value=60))
    def deliver_elsewhere(self, pick: int, moved: int) -> None:
        if self.room():
            self.arrive(self.owned.pop(pick % len(self.owned)), 300, moved)

    def arrive(self, address: int, length: int, moved: int = 0) -> None:
        assert self.guest is not None
        socket = self.guest.socket
        self.delivered[self.next_frame] = content(self.next_frame, length)
        socket.deliver(address, self.delivered[self.next_frame], offset=256 + socket.headroom + moved)
        self.next_frame += 1
        self.arriving.append(True)

    @rule(
        address=st.integers(0, ADDRESS_BITS), length=st.integers(0, 0xFFFFFFFF), offset=st.integers(0, 0xFFFF)
    )
    def invent_an_arrival(self, address: int, length: int, offset: int) -> None:
        assert self.guest is not None
        if self.room():
            self.guest.socket.describe(address, length, offset=offset)
            self.arriving.append(False)

    @precondition(lambda self: self.owned)
    @rule(pick=st.integers(0, 63), length=frame_lengths)
    def deliver_twice(self, pick: int, length: int) -> None:
        assert self.guest is not None
        if self.room() > 1:
            address = self.owned.pop(pick % len(self.owned))
            self.arrive(address, length)
            self.guest.socket.describe(address, length)
            self.arriving.append(False)

    def room(self) -> int:
        assert self.guest is not None
        return SOCKET_RING - self.guest.socket.waiting.rx

    @precondition(lambda self: self.guest.socket.waiting.tx)
    @rule(most=st.integers(min_value=1, max_value=SOCKET_RING))
    def put_on_the_wire(self, most: int) -> None:
        assert self.guest is not None
        for frame in self.guest.socket.take_frames(most):
            (number,) = struct.unpack_from("<I", frame.data)
            assert self.unsent.pop(number, None) == frame.data, f"frame {number} is not as the guest sent it"
            at = 0
            for address, length in zip(frame.addresses, frame.lengths, strict=True):
                self.not_complete.append((address, frame.data[at : at + length]))
                at += length

    @precondition(lambda self: self.not_complete)
    @rule(which=few_picks, clear_bit_0=st.booleans(), now=st.booleans())
    def complete(self, which: list[int], clear_bit_0: bool, now: bool) -> None:
        for pick in which:
            if self.not_complete:
                self.complete_one(pick % len(self.not_complete), clear_bit_0)
        self.work_if(now)

    def complete_one(self, pick: int, clear_bit_0: bool = False) -> None:
        assert self.guest is not None
        socket = self.guest.socket
        if socket.waiting.completion == SOCKET_RING:
            return
        address, sent = self.not_complete.pop(pick)
        # A NIC may read until the moment that it says it is through.
        assert socket.read((address & ADDRESS_BITS) + (address >> 48), len(sent)) == sent, (
            "a frame changed while the NIC had it"
        )
        socket.complete([address & ~1 if clear_bit_0 else address])
        self.completing.append(True)

    @rule(head=st.integers(min_value=SIZE, max_value=0xFFFF), low=st.integers(0, ADDRESS_BITS))
    def invent_a_completion(self, head: int, low: int) -> None:
        assert self.guest is not None
        if self.guest.socket.waiting.completion < SOCKET_RING:
            self.guest.socket.complete([head << 48 | low])
            self.completing.append(False)

    # --- attaching -----------------------------------------------------------------------------------

    @rule(orderly=st.booleans())
    def close_and_attach_again(self, orderly: bool) -> None:
        """End an attachment: in an orderly one all that the guest sent has left."""
        self.end(orderly=orderly)
        assert self.guest is not None
        self.guest.reattach()
        self.attached = True

    def end(self, *, orderly: bool) -> None:
        guest = self.guest
        assert guest is not None
        if orderly:
            guest.run()
            self.put_on_the_wire(SOCKET_RING)
            while self.not_complete and guest.socket.waiting.completion < SOCKET_RING:
                self.complete_one(0)
            guest.run()
            self.receive()
            self.every_buffer_has_one_owner()
        self.attached = False
        if guest.port.held[2] == 0:
            guest.pair.finish()
        guest.port.close()
        guest.pair.settle()
        self.not_complete = []
        self.receive()
        for driver in (self.rx, self.tx):
            driver.check_offered_again()
            assert driver.ring.device.error is None
        # What was on its way at the end never arrives, but for frames that the guest had not yet given to us.
        self.delivered.clear()
        for number in set(self.unsent) - set(self.sending.values()):
            del self.unsent[number]
        self.forget_kernel()

    # --- what always holds ---------------------------------------------------------------------------

    @invariant()
    def every_buffer_has_one_owner(self) -> None:
        guest = self.guest
        if guest is None or not self.attached:
            return
        waiting = guest.socket.waiting
        del self.arriving[: len(self.arriving) - waiting.rx]
        del self.completing[: len(self.completing) - waiting.completion]
        chains, spare, descriptors = guest.port.held
        assert chains + spare == len(self.owned) + waiting.fill + sum(self.arriving)
        assert chains <= guest.rx.device.in_flight <= len(self.rx.out)
        assert descriptors == len(self.not_complete) + waiting.tx + sum(self.completing)
        for driver in (self.rx, self.tx):
            assert sorted(
                [*driver.free, *(slot for chain in driver.out.values() for slot, _, _ in chain)]
            ) == [*range(SIZE)]

    @invariant()
    def nothing_else_has_changed(self) -> None:
        if self.guest is not None:
            self.rx.check_untouched()
            self.tx.check_untouched()

    def teardown(self) -> None:
        if self.guest is not None:
            try:
                if self.attached:
                    self.end(orderly=True)
                drops = self.guest.counted()["tx"]["drops"]
                assert not set(drops) - {"unexpected_place", "unsent"}
            finally:
                self.guest.close()


TestBuffers = BufferMachine.TestCase
TestBuffers.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

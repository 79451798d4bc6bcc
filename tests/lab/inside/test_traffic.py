"""Frames cross in zero copy, every byte of them arrives, and no byte changes that nobody posted.

What is checked of the guest's memory, while nothing is on its way and at several points of the traffic:

- Memory that belongs to no ring and no buffer, a whole region of it included, and the 64 bytes and more
  before and behind each buffer, hold the pattern with which they were filled before the rings started.
- A received frame is right to its last byte, and behind it, to the end of its buffer, nothing was
  written: neither by guestwire nor by the NIC, which may use a buffer's room for a longest frame.
- A receive buffer that the device holds is as it was when it was posted.
- A frame that was sent is unchanged when its buffer comes back, and while frames only arrive, no byte of any
  transmit buffer changes.

The buffers are as small as the port takes them. They lie all over a page, half of them at odd addresses, some
ending or starting next to a border between pages. Zero copy of all frames needs buffers that a device sees in
one piece, with up to 2,560 bytes before them: so each ring's buffers lie within a hugepage, not at its start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guestwire.ports import geometry
from guestwire.testing import (
    Block,
    BufferLayout,
    FakeGuest,
    FrameStream,
    PacketSocket,
    PageKind,
    SharedMemory,
)
from guestwire.testing.namespaces import call_inside
from lab.inside.commands import LabBackend
from lab.inside.kernel_view import XDP_OPTIONS_ZEROCOPY, napi_ids, xdp_options
from lab.inside.peer import wait_for_carrier
from lab.machine import KIND_VARIABLE, NAMESPACE, NIC, NIC_ADDRESS, PEER, PEER_ADDRESS

MIB = 1 << 20
HEADER = 12
GUARD = 64
BURST = 64  # frames on the way each way: the cable drops what finds no buffer
LENGTHS = (60, 1514)
MTU = 1500
FRAMES = 100_000
FEW = 100 * BURST
LINUX_BUFFER = 1536  # Linux's driver, mergeable: header and a frame with a VLAN tag, in cache lines
BUFFERS = 900  # to receive: as many as lie in one hugepage, and more than an igb must have
PATIENCE = 30.0  # seconds

KIND = os.environ[KIND_VARIABLE]
SHMEM_HUGEPAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def layout(length: int) -> BufferLayout:
    """Buffers of a length, their addresses all over a page."""
    spacing = GUARD + length + GUARD
    return BufferLayout(length, offset=GUARD, spacing=spacing + 1 - spacing % 2)


def receive_room() -> int:
    """Bytes behind its header that a buffer must have at least for the port to take it."""
    lies = geometry.zero_copy_mode(MTU, KIND)
    assert lies is not None
    return lies.room_needed


def stream(destination: str, source: str, lengths: tuple[int, int] = LENGTHS) -> FrameStream:
    """Frames from one interface's address to the other's: neither need be promiscuous."""
    to, by = (bytes.fromhex(address.replace(":", "")) for address in (destination, source))
    return FrameStream(lengths, destination=to, source=by)


@dataclasses.dataclass
class Traffic:
    """Frames both ways between a guest on nic0 and the peer, verified."""

    peer: PacketSocket
    backend: LabBackend
    guest: FakeGuest
    lead: Block
    arriving: FrameStream = dataclasses.field(default_factory=lambda: stream(NIC_ADDRESS, PEER_ADDRESS))
    leaving: FrameStream = dataclasses.field(default_factory=lambda: stream(PEER_ADDRESS, NIC_ADDRESS))
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._unchanging = self._what_never_changes()

    def _what_never_changes(self) -> tuple[bytes, bytes]:
        return bytes(self.lead.bytes), bytes(self.guest.rings[0].descriptor_table.bytes)

    def check_memory(self) -> None:
        self.guest.check_guards()
        assert self._what_never_changes() == self._unchanging

    def exchange(self, count: int) -> None:
        """Frames both ways at a time, none of which may be lost."""
        start = time.monotonic()
        pair = self.guest.pair
        for done in range(0, count, BURST):
            frames = min(BURST, count - done)
            self.peer.send_stream(self.arriving, frames)
            pair.send_stream(self.leaving, frames, drain=False)
            pair.receive_stream(self.arriving, frames, timeout=PATIENCE)
            self.peer.receive_stream(self.leaving, frames, timeout=PATIENCE)
        pair.drain(timeout=PATIENCE)
        self.seconds += time.monotonic() - start
        self.check_memory()

    def only_receive(self, count: int) -> None:
        """Frames to the guest, while it sends none."""
        sent = bytes(self.guest.rings[1].area.bytes)
        for _ in range(0, count, BURST):
            self.peer.send_stream(self.arriving, BURST)
            self.guest.pair.receive_stream(self.arriving, BURST, timeout=PATIENCE)
        assert bytes(self.guest.rings[1].area.bytes) == sent
        self.check_memory()

    def report(self, what: str) -> dict[str, Any]:
        """Print the record of it; return the guest's status."""
        state: dict[str, Any] = self.backend.guest()
        port = state["port"]
        print(
            f"\n{KIND}, {what}: {port['mode']}, {self.seconds:.1f} s; {port['mode_reason'] or 'no remarks'}"
        )
        for direction in ("rx", "tx"):
            counted = state["counters"][direction]
            copied = {reason: count for reason, count in counted["copied_frames"].items() if count}
            share = counted["zero_copy_frames"] / counted["frames"]
            print(f"  {direction}: {counted['frames']:,} frames, {share:.2%} zero copy, copied: {copied}")
            assert counted["frames"] == counted["zero_copy_frames"] + sum(copied.values())
            assert not any(counted["drops"].values()), counted
        assert state["counters"]["rx"]["frames"] == self.arriving.received == self.arriving.sent
        assert state["counters"]["tx"]["frames"] == self.leaving.received == self.leaving.sent
        return state


@contextlib.contextmanager
def traffic(
    folder: Path,
    pages: PageKind,
    *,
    queue_size: int = 1024,
    receive_length: int | None = None,
    options: str = "",
    verify_unwritten: bool = True,
) -> Iterator[Traffic]:
    with (
        call_inside(NAMESPACE, lambda: PacketSocket(PEER)) as peer,
        SharedMemory(16 * MIB, 16 * MIB, pages=pages, guarded=True) as memory,
        LabBackend(folder, f"xdp:{NIC},mode=zero-copy{options}") as backend,
    ):
        # The rings lie in the first region, and the buffers in the last, but not at its start.
        lead = memory.allocate(2 * 4096, region=-1)
        with FakeGuest(
            backend.socket,
            memory=memory,
            queue_size=queue_size,
            receive_layout=layout(receive_length or HEADER + receive_room()),
            transmit_layout=layout(HEADER + LENGTHS[1]),
            receive_buffers=min(queue_size, BUFFERS),
            verify_sent=True,
            verify_unwritten=verify_unwritten,
            timeout=PATIENCE,
        ) as guest:
            guest.frontend.get_features()  # requests are followed in order: the rings run now
            wait_for_carrier()
            yield Traffic(peer, backend, guest, lead)


def copy_reasons(state: dict[str, Any]) -> set[str]:
    counters = state["counters"]
    return {
        reason for way in ("rx", "tx") for reason, count in counters[way]["copied_frames"].items() if count
    }


@contextlib.contextmanager
def transparent_hugepages() -> Iterator[None]:
    """Let shared memory that asks for transparent hugepages have them."""
    before = SHMEM_HUGEPAGES.read_text().partition("[")[2].partition("]")[0]
    SHMEM_HUGEPAGES.write_text("advise")
    try:
        yield
    finally:
        SHMEM_HUGEPAGES.write_text(before)


def shared_hugepages() -> int:
    """Bytes of shared memory that the kernel has put into transparent hugepages."""
    found = re.search(r"^ShmemHugePages: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def test_hugepages(tmp_path: Path) -> None:
    """All frames go in zero copy, the kernel says so too, and every byte is where it should be."""
    with traffic(tmp_path, PageKind.HUGETLB) as running:
        assert xdp_options(running.backend.pid) == [XDP_OPTIONS_ZEROCOPY]
        for _ in range(4):
            running.exchange(FRAMES // 4)
        state = running.report("hugetlbfs")
        running.only_receive(10 * BURST)
        assert xdp_options(running.backend.pid) == [XDP_OPTIONS_ZEROCOPY]
    assert_all_zero_copy(state, FRAMES)


def test_transparent_hugepages(tmp_path: Path) -> None:
    with transparent_hugepages(), traffic(tmp_path, PageKind.TRANSPARENT) as running:
        assert shared_hugepages() >= running.guest.memory.size
        running.exchange(FEW)
        state = running.report("transparent hugepages")
    assert_all_zero_copy(state, FEW)


def assert_all_zero_copy(state: dict[str, Any], frames: int) -> None:
    assert state["port"]["mode"] == "zero-copy"
    assert state["port"]["mode_reason"] is None
    for way in ("rx", "tx"):
        assert state["counters"][way]["zero_copy_frames"] == frames
        assert state["counters"][way]["copied_bytes"] == 0
    assert not copy_reasons(state)


def test_scattered_pages(tmp_path: Path) -> None:
    """What crosses from a page to one that is elsewhere is copied, and counted with that reason."""
    with traffic(tmp_path, PageKind.SCATTERED) as running:
        assert xdp_options(running.backend.pid) == [XDP_OPTIONS_ZEROCOPY]
        running.exchange(FEW)
        state = running.report("scattered 4 KiB pages")
    assert "scattered pages" in state["port"]["mode_reason"]
    assert copy_reasons(state) == {"page_crossing"}
    for way in ("rx", "tx"):
        assert 0 < state["counters"][way]["zero_copy_frames"] < FEW


def test_plain_pages(tmp_path: Path) -> None:
    """How much of ordinary memory can be used is up to the machine; what it is must be said."""
    with traffic(tmp_path, PageKind.SMALL) as running:
        running.exchange(FEW)
        state = running.report("4 KiB pages")
    assert copy_reasons(state) <= {"page_crossing"}
    assert state["counters"]["rx"]["zero_copy_frames"] > 0


def test_a_short_ring(tmp_path: Path) -> None:
    """An igb must have more buffers than a ring of 256 offers: our own take part, and that is said."""
    with traffic(tmp_path, PageKind.HUGETLB, queue_size=256) as running:
        running.exchange(FEW)
        state = running.report("hugetlbfs, rings of 256")
    if KIND == "igb":
        assert "rx_queue_size=1024" in state["port"]["mode_reason"]
        assert copy_reasons(state) == {"few_buffers"}
        assert state["counters"]["tx"]["zero_copy_frames"] == FEW
    else:
        assert_all_zero_copy(state, FEW)


def test_buffers_as_linux_makes_them(tmp_path: Path) -> None:
    """They have no room for what a NIC might write, so somebody must say that it will not."""
    with traffic(
        tmp_path, PageKind.HUGETLB, receive_length=LINUX_BUFFER, options=",trust-mtu=yes"
    ) as running:
        running.exchange(FEW)
        state = running.report(f"hugetlbfs, buffers of {LINUX_BUFFER} bytes")
    assert_all_zero_copy(state, FEW)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Let nic0 leave its interrupts off while it is polled."""
    settings = {"napi_defer_hard_irqs": "2", "gro_flush_timeout": "200000"}
    for name, value in settings.items():
        Path(f"/sys/class/net/{NIC}/{name}").write_text(value)
    try:
        yield
    finally:
        for name in settings:
            Path(f"/sys/class/net/{NIC}/{name}").write_text("0")


def test_busy_polling(tmp_path: Path) -> None:
    """The kernel knows which queue the worker's calls poll, and nothing is lost by polling it."""
    with (
        deferred_interrupts(),
        traffic(tmp_path, PageKind.HUGETLB, options=",busy-poll=yes") as running,
    ):
        (polled,) = napi_ids(running.backend.pid)
        assert polled
        running.exchange(FEW)
        state = running.report("busy polling")
        assert "go on interrupting" not in running.backend.text()
    assert_all_zero_copy(state, FEW)


@contextlib.contextmanager
def peer_mtu(mtu: int) -> Iterator[None]:
    """Let the peer send longer frames than nic0 should get."""

    def set_mtu(to: int) -> None:
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", PEER, "mtu", str(to)], check=True)

    set_mtu(mtu)
    try:
        yield
    finally:
        set_mtu(MTU)


def test_frames_that_are_too_long(tmp_path: Path) -> None:
    """They may spoil posted buffers, which a NIC may fill before it gives the frame up, and nothing else."""
    with (
        peer_mtu(9000),
        traffic(tmp_path, PageKind.HUGETLB, verify_unwritten=False) as running,
    ):
        for longest in (receive_room() + 64, 8000):
            too_long = stream(NIC_ADDRESS, PEER_ADDRESS, (receive_room() + 1, longest))
            for _ in range(10):
                running.peer.send_stream(too_long, BURST // 4)
                running.exchange(BURST)
        state = running.report("frames that are too long between them")
    assert_all_zero_copy(state, 20 * BURST)

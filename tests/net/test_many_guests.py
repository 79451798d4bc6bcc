"""Many guests of one process that come and go: nothing of them is left, in the process or in the kernel.

GUESTWIRE_SOAK=1 (``make soak``) does it with 20 guests of 512 MiB, 100 times.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backend.house import complaints, status, threads
from backend.process import Backend, wait_until
from guestwire.daemon import CHANGES
from guestwire.datapath.window import Window
from guestwire.ports.xdp import BOUNCE_FRAMES
from guestwire.testing import BackendError, FakeGuest, FrameStream, SharedMemory, Wire
from net.traffic import connect, peer_socket

SOAK = bool(os.environ.get("GUESTWIRE_SOAK"))

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800 if SOAK else 120)]

MIB = 1 << 20
GUESTS = 20
WARM_UP = 2  # cycles
GUEST_BYTES = (512 if SOAK else 16) * MIB
CYCLES, TURNS = (100, 100) if SOAK else (4, 2)  # even numbers: the last one ends connections
ATTACHMENTS = GUESTS * CYCLES
RESERVE_BYTES = 3 << 30  # what a soak leaves to the machine, some of it for the kernel's arrays
BURST = 8
QUEUE_SIZE = 64
PATIENCE_SECONDS = 30.0  # pinning takes its time, and other tests may take the processors

MOST_THREADS = 1 + (1 + CHANGES) * GUESTS  # the main thread, and two pools, one of which grows slowly
THREAD_BYTES = 72 * MIB  # of address space: a stack, and what malloc sets aside for a thread
PROCESS_GROWTH = 16 * MIB  # what malloc and Python keep at hand in each thread: it ends after some 50 cycles
# Of the whole machine, where others are at work, too. One lost piece for each attachment would be far more.
KERNEL_GROWTH = 64 * MIB
AREA_GROWTH = ATTACHMENTS // 2

CAPABILITIES = "-all,+net_admin,+net_raw,+bpf,+dac_override"  # not CAP_IPC_LOCK


class SealableMemory(SharedMemory):
    """Memory that can be sealed: the kernel forbids writing to it for good, if nobody can write any more."""

    def _file(self, size: int) -> int:
        fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        return fd


@dataclass
class Visitor:
    """A guest on a wire of its own, which attaches, exchanges frames and detaches, again and again."""

    guest: FakeGuest
    memory: SealableMemory
    peer: socket.socket
    connected: bool = False
    arriving: FrameStream = field(default_factory=lambda: FrameStream((60, 1514)))
    leaving: FrameStream = field(default_factory=lambda: FrameStream((60, 1514)))

    def attach(self) -> None:
        if not self.guest.rings:
            self.guest.start()
        elif self.connected:
            for ring in self.guest.rings:
                self.guest.start_ring(ring)
        else:
            self.guest.reconnect()
        self.connected = True

    def exchange(self) -> None:
        """Have some frames cross each way: all of them, unchanged."""
        self.guest.pair.send_stream(self.leaving, BURST)
        for _ in range(BURST):
            self.leaving.accept(self.peer.recv(65536))
        for frame in self.arriving.take(BURST):
            self.peer.send(frame)
        self.guest.pair.receive_stream(self.arriving, BURST)

    def detach(self, *, disconnect: bool) -> None:
        if disconnect:
            self.guest.frontend.close()
            self.connected = False
        else:
            self.guest.stop()

    def leave(self) -> None:
        """Take the memory away, and make sure that nobody holds a page of it, not even the kernel.

        Pages that are mapped for writing, or pinned, keep the kernel from sealing a file (EBUSY).
        """
        self.guest.close()
        (region,) = self.memory.regions
        fd = os.dup(region.fd)
        try:
            self.memory.close()
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Held:
    """What a process holds, and what the kernel holds for whomever.

    Attributes:
        descriptors: how many of each kind of file.
        mappings: how many of each file.
        threads: how many.
        private_bytes: of address space that are no file's.
        resident_bytes: of memory.
        areas: of the kernel's address space that belong to AF_XDP sockets.
        kernel_bytes: that the kernel has allocated and cannot do without.
    """

    descriptors: Counter[str]
    mappings: Counter[str]
    threads: int
    private_bytes: int
    resident_bytes: int
    areas: int
    kernel_bytes: int

    @classmethod
    def by(cls, backend: Backend) -> Held:
        process = Path(f"/proc/{backend.pid}")
        descriptors: Counter[str] = Counter()
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was there for a moment
                descriptors[re.sub(r"\d+", "N", str(descriptor.readlink()))] += 1
        mappings: Counter[str] = Counter()
        private = 0
        for line in (process / "maps").read_text().splitlines():
            span, _, _, _, _, *name = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in span.split("-"))
            if name and name[0].startswith("/"):
                mappings[name[0].removesuffix(" (deleted)")] += 1
            else:
                private += end - start
        areas = re.findall(r"\b(?:xdp|xp|xsk|xskq)_\w+\+", Path("/proc/vmallocinfo").read_text())
        return cls(
            descriptors,
            mappings,
            threads(backend),
            private,
            bytes_of(process / "status", "VmRSS"),
            len(areas),
            sum(bytes_of(Path("/proc/meminfo"), name) for name in ("VmallocUsed", "SUnreclaim")),
        )

    @classmethod
    def at_rest_by(cls, backend: Backend) -> Held:
        """The same while nothing is open that is only asked for a moment, such as an interface."""
        return min((cls.by(backend) for _ in range(20)), key=lambda held: held.descriptors.total())

    def is_no_more_than(self, before: Held) -> bool:
        """Whether nothing has been added, but for what processes take for themselves."""
        more_threads = max(0, self.threads - before.threads)
        private_growth = PROCESS_GROWTH + more_threads * THREAD_BYTES
        return (
            (self.descriptors, self.mappings) == (before.descriptors, before.mappings)
            and self.threads <= MOST_THREADS
            and self.private_bytes <= before.private_bytes + private_growth
            and self.resident_bytes <= before.resident_bytes + PROCESS_GROWTH
            and self.areas <= before.areas + AREA_GROWTH
            and self.kernel_bytes <= before.kernel_bytes + KERNEL_GROWTH
        )

    def __str__(self) -> str:
        return (
            f"{self.descriptors.total()} descriptors, {self.mappings.total()} mappings, "
            f"{self.threads} threads, {self.private_bytes >> 10} KiB of address space, "
            f"{self.resident_bytes >> 10} KiB resident; "
            f"in the kernel {self.areas} areas, {self.kernel_bytes >> 10} KiB"
        )


def bytes_of(file: Path, name: str) -> int:
    """A line of a file in /proc, such as ``VmRSS: 12 kB``."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", file.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def pinned(backend: Backend) -> int:
    return sum(guest.memory.pinned_bytes for guest in status(backend).values())


def window_bytes(guest_bytes: int) -> int:
    """What is pinned for a guest with so much memory."""
    with SharedMemory(guest_bytes) as memory:
        table = [(r.guest_address, r.user_address, r.size, r.fd, r.mmap_offset) for r in memory.regions]
        window = Window(table, bounce_frames=BOUNCE_FRAMES)
        try:
            return window.size
        finally:
            window.close()


@contextlib.contextmanager
def visited(
    folder: Path, guest_bytes: int, wrapper: Sequence[str] = ()
) -> Iterator[tuple[Backend, list[Visitor]]]:
    """A process, and its guests, none of them attached; each may pin what it needs once, and no more."""
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(Wire())
        ends = [(f"wire{number}", f"peer{number}") for number in range(GUESTS)]
        for near, far in ends[1:]:
            connect(wire, near, far)
        sockets = [folder / f"guest{number}.sock" for number in range(GUESTS)]
        limit = f"{window_bytes(guest_bytes) >> 10}K"
        file = folder / "guests.toml"
        file.write_text(
            "".join(
                f"[[guest]]\nsocket_path = '{path}'\nport = 'xdp:{near},mode=direct'\n"
                f"max_pinned = '{limit}'\n"
                for path, (near, _) in zip(sockets, ends, strict=True)
            )
        )
        backend = Backend(
            folder, None, [str(file)], namespace=wire.near.name, sockets=sockets, wrapper=wrapper
        )
        stack.enter_context(backend)
        visitors = []
        for path, (_, far) in zip(sockets, ends, strict=True):
            memory = stack.enter_context(SealableMemory(guest_bytes))
            peer = stack.enter_context(peer_socket(wire, far))
            peer.settimeout(PATIENCE_SECONDS)
            guest = FakeGuest(path, memory=memory, queue_size=QUEUE_SIZE, timeout=PATIENCE_SECONDS)
            stack.callback(guest.close)
            visitors.append(Visitor(guest, memory, peer))
        yield backend, visitors


def all_are(backend: Backend, state: str) -> bool:
    return {guest.state for guest in status(backend).values()} == {state}


def together(backend: Backend, visitors: Sequence[Visitor], cycles: int) -> None:
    """All guests attach, and all detach; every second time they disconnect."""
    each = window_bytes(visitors[0].memory.size)
    for cycle in range(1, cycles + 1):
        for visitor in visitors:
            visitor.attach()
            visitor.exchange()
        assert pinned(backend) == len(visitors) * each
        disconnect = cycle % 2 == 0
        for visitor in visitors:
            visitor.detach(disconnect=disconnect)
        state = "listening" if disconnect else "connected"
        wait_until(lambda: all_are(backend, state), PATIENCE_SECONDS)  # noqa: B023
        assert pinned(backend) == 0


@pytest.fixture
def _enough_memory() -> None:
    available, needed = bytes_of(Path("/proc/meminfo"), "MemAvailable"), GUESTS * GUEST_BYTES + RESERVE_BYTES
    if SOAK and available < needed:
        pytest.skip(f"{needed >> 20} MiB of memory are needed, {available >> 20} MiB are available")


@pytest.mark.usefixtures("_enough_memory")
def test_nothing_is_left_of_them(tmp_path: Path) -> None:
    with visited(tmp_path, GUEST_BYTES) as (backend, visitors):
        together(backend, visitors, WARM_UP)
        before = Held.at_rest_by(backend)
        together(backend, visitors, CYCLES)
        with contextlib.suppress(AssertionError):  # the comparison below says what is wrong
            wait_until(lambda: Held.at_rest_by(backend).is_no_more_than(before), PATIENCE_SECONDS)
        after = Held.at_rest_by(backend)
        print(f"before: {before}\nafter:  {after}")
        assert after.descriptors == before.descriptors
        assert after.mappings == before.mappings
        assert after.is_no_more_than(before)
        for visitor in visitors:
            visitor.leave()
        assert complaints(backend.text()) == []


def test_the_kernel_takes_every_page_off_the_account() -> None:
    """Guests take turns with as much locked memory as one of them needs, to the page.

    Locked memory is counted for each user, so the process runs as one that nobody else is.
    """
    user, limit = 0x40000000 + os.getpid(), window_bytes(MIB)
    wrapper = (
        *("prlimit", f"--memlock={limit}:{limit}", "--"),
        *("setpriv", "--reuid", str(user), "--clear-groups", "--bounding-set", CAPABILITIES),
        *("--inh-caps", CAPABILITIES, "--ambient-caps", CAPABILITIES, "--pdeathsig", "KILL", "--"),
    )
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, user, -1)
        with visited(Path(name), MIB, wrapper) as (backend, visitors):
            for cycle in range(TURNS):
                disconnect = cycle % 2 == 1
                for visitor in visitors:
                    visitor.attach()
                    assert pinned(backend) == limit
                    visitor.exchange()
                    visitor.detach(disconnect=disconnect)
                    wait_until(lambda: pinned(backend) == 0)
                state = "listening" if disconnect else "connected"
                wait_until(lambda: all_are(backend, state))  # noqa: B023
            visitors[0].attach()
            with pytest.raises(BackendError, match="the backend refused"):
                visitors[1].attach()
            assert "must be pinned and the limit on locked memory is" in backend.text()

"""Contenders with guestwire.testing's driver for a guest: single frames, large frames, and none at all."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator

import backends
from backends import Place, Program
from case import LARGE_FRAME, Case
from contenders import Contender, Process, cpu_share

from guestwire.bench import frames, plan
from guestwire.bench.cpus import CpuTime
from guestwire.bench.results import percentile
from guestwire.testing import (
    DRIVER_FEATURES,
    OFFLOAD_FEATURES,
    FakeGuest,
    FrameStream,
    Load,
    SharedMemory,
)
from guestwire.testing.placement import On
from guestwire.virtio.segmentation import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    NetHeader,
)

WARM_UP_SECONDS = 0.05
BLOCKS = 64, 16
"""Blocks of a large frame's size that are copied from and to in turn: as much memory as the rings hold."""

HEADER = NetHeader(
    flags=VIRTIO_NET_HDR_F_NEEDS_CSUM,
    gso_type=VIRTIO_NET_HDR_GSO_TCPV4,
    hdr_len=frames.HEADERS,
    gso_size=frames.SEGMENT,
    csum_start=frames.ETHERNET + frames.IPV4,
    csum_offset=16,
)
ADDRESSES = (b"\x52\x54\x00\x00\x00\x00", b"\x52\x54\x00\x00\x00\x01")


class OwnDriver(Contender):
    """A backend whose guest is in this process.

    Args:
        name: in the results.
        backend: its process.
        place: where it runs, and where we do.
    """

    def __init__(self, name: str, backend: backends.Backend, place: Place) -> None:
        super().__init__(name)
        self._backend, self._place = backend, place
        self._process = Process(backend.pid)

    def start(self, size: int) -> None:
        self._backend.start(size)

    def stop(self) -> dict[str, float]:
        self._backend.stop()
        return {}

    def measure(self, seconds: float) -> dict[str, float]:
        with On(self._place.guest_cpu):
            self._prepare()
            backend, own, start = self._process.cpu_time(), CpuTime.of_this_thread(), time.monotonic()
            figures = self._run(seconds)
            took = time.monotonic() - start
            own, backend = CpuTime.of_this_thread() - own, self._process.cpu_time() - backend
        return figures | {
            "backend_share": round(cpu_share(backend, took), 3),
            "guest_share": round(cpu_share(own, took), 3),
            "backend_cpu_seconds_per_second": round(backend.run / took, 6),
        }

    def _prepare(self) -> None:
        """Do what is not measured."""

    def _run(self, seconds: float) -> dict[str, float]:
        """Do what is measured: nothing, here."""
        time.sleep(seconds)
        return {}


class RoundTrips(OwnDriver):
    """One frame after the other, there and back.

    Args:
        name: see `OwnDriver`.
        backend: see `OwnDriver`.
        place: see `OwnDriver`.
        load: the driver.
    """

    def __init__(self, name: str, backend: backends.Backend, place: Place, load: Load) -> None:
        super().__init__(name, backend, place)
        self._load = load

    def _prepare(self) -> None:
        self._load.run(WARM_UP_SECONDS)
        self._load.drain()

    def _run(self, seconds: float) -> dict[str, float]:
        times = sorted(self._load.round_trips(seconds))
        shares = {"round_trip_p50_ns": 0.5, "round_trip_p99_ns": 0.99}
        return {name: percentile(times, share) for name, share in shares.items()} | {"trips": len(times)}


class LargeFrames(OwnDriver):
    """Two guests that send each other large frames, as fast as they go.

    Args:
        name: see `OwnDriver`.
        backend: see `OwnDriver`.
        place: see `OwnDriver`.
        load: the driver of both guests.
    """

    def __init__(self, name: str, backend: backends.Backend, place: Place, load: Load) -> None:
        super().__init__(name, backend, place)
        self._load = load

    def _prepare(self) -> None:
        self._load.run(WARM_UP_SECONDS)

    def _run(self, seconds: float) -> dict[str, float]:
        window = self._load.run(seconds)
        return {
            "bytes_per_second": round(window.received_bytes / window.seconds),
            "frames_per_second": round(window.received / window.seconds, 1),
        }


class Memcpy(Contender):
    """What memcpy does on one CPU, from as much memory to as much as the guests' frames take."""

    def __init__(self, cpu: int) -> None:
        super().__init__("memcpy")
        self._cpu = cpu
        sources, destinations = (ctypes.create_string_buffer(LARGE_FRAME * count) for count in BLOCKS)
        self._buffers = (sources, destinations)  # alive
        self._copies = [
            (
                ctypes.addressof(destinations) + i % BLOCKS[1] * LARGE_FRAME,
                ctypes.addressof(sources) + i * LARGE_FRAME,
            )
            for i in range(BLOCKS[0])
        ]

    def start(self, size: int) -> None:
        pass

    def stop(self) -> dict[str, float]:
        return {}

    def measure(self, seconds: float) -> dict[str, float]:
        memmove, copied = ctypes.memmove, 0
        with On(self._cpu):
            before, start = CpuTime.of_this_thread(), time.monotonic()
            while (took := time.monotonic() - start) < seconds:
                for destination, source in self._copies:
                    memmove(destination, source, LARGE_FRAME)
                copied += len(self._copies) * LARGE_FRAME
            share = cpu_share(CpuTime.of_this_thread() - before, took)
        return {"bytes_per_second": round(copied / took), "backend_share": round(share, 3)}


@contextlib.contextmanager
def _guest(case: Case, place: Place, number: int = 0) -> Iterator[FakeGuest]:
    """Have a guest of ours up."""
    shape = plan.Case(plan.LOOPBACK["echo"], case.ring, case.size, case.queue_size, 1, with_trips=False)
    receive, transmit = frames.layouts(shape)
    with (
        SharedMemory(frames.memory_bytes(shape)) as memory,
        FakeGuest(
            place.sockets(case)[number],
            memory=memory,
            queue_size=case.queue_size,
            features=DRIVER_FEATURES | (OFFLOAD_FEATURES if shape.is_large else 0),
            receive_layout=receive,
            transmit_layout=transmit,
            transmit_buffers=frames.transmit_buffers(shape),
            packed=case.ring == "packed",
        ) as guest,
    ):
        yield guest


@contextlib.contextmanager
def round_trips(program: Program, _driver: Program, case: Case, place: Place) -> Iterator[Contender]:
    """Have a backend and our driver up, to send single frames."""
    with backends.running(program, case, place) as backend, _guest(case, place) as guest:
        load = Load([guest.pair], [FrameStream(case.size)], returning=True)
        yield RoundTrips(program.name, backend, place, load)


@contextlib.contextmanager
def idle(program: Program, _driver: Program, case: Case, place: Place) -> Iterator[Contender]:
    """Have a backend and a guest up that has nothing to send."""
    with backends.running(program, case, place) as backend, _guest(case, place):
        yield OwnDriver(program.name, backend, place)


@contextlib.contextmanager
def large_frames(program: Program, _driver: Program, case: Case, place: Place) -> Iterator[Contender]:
    """Have a backend and two guests up, or memcpy."""
    if program.kind == "memcpy":
        yield Memcpy(place.backend_cpu)
        return
    with (
        backends.running(program, case, place) as backend,
        contextlib.ExitStack() as stack,
    ):
        guests = [stack.enter_context(_guest(case, place, number)) for number in range(2)]
        streams = [
            FrameStream(
                case.size,
                head=ADDRESSES[1 - number] + ADDRESSES[number] + frames.tcp_headers(case.size, 40000)[12:],
                header=HEADER.pack(),
                whole_every=frames.WHOLE_EVERY,
            )
            for number in range(2)
        ]
        load = Load([guest.pair for guest in guests], streams, returning=False)
        yield LargeFrames(program.name, backend, place, load)

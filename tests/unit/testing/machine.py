"""A queue pair of the testing driver with the oracle as its device: neither knows the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from guestwire.testing import BufferLayout, DriverRing, QueuePair, SharedMemory, raw_ring
from guestwire.virtio.features import Feature
from guestwire.virtio.model import Chain, GuestMemory, MemoryRegion, SplitRing

HEADER = 12

Change = Callable[[bytes], bytes | None]
"""What a reflector does to a frame with its header; None drops it."""


def unchanged(data: bytes) -> bytes:
    return data


class Machine:
    """A queue pair in memory, with the oracle at its other end."""

    def __init__(
        self,
        memory: SharedMemory,
        *,
        features: Feature,
        size: int = 16,
        base: int = 0,
        receive_layout: BufferLayout | None = None,
        transmit_layout: BufferLayout | None = None,
        verify_sent: bool = True,
        strict: bool = True,
    ) -> None:
        region = memory.regions[0]
        self.guest = GuestMemory(region.bytes[:], [MemoryRegion(region.guest_address, region.size, 0)])
        self.fds: list[int] = []
        self.drivers: list[DriverRing] = []
        self.devices: list[SplitRing] = []
        for layout, receive in ((receive_layout, True), (transmit_layout, False)):
            self._add(memory, layout or BufferLayout(), receive, features, size, base)
        self.pair = QueuePair(*self.drivers, verify_sent=verify_sent, strict=strict)
        self.receive, self.transmit = self.devices

    def _add(
        self,
        memory: SharedMemory,
        layout: BufferLayout,
        receive: bool,
        features: Feature,
        size: int,
        base: int,
    ) -> None:
        table = memory.allocate(raw_ring.descriptor_table_size(size), 16)
        available = memory.allocate(raw_ring.available_ring_size(size), 2)
        used = memory.allocate(raw_ring.used_ring_size(size), 4)
        pieces = layout.pieces(HEADER)
        area = memory.allocate(size * layout.share(HEADER))
        tables = memory.allocate(16 * len(pieces) * size, 16)
        self.fds += [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        driver = DriverRing(
            size,
            table.bytes,
            available.bytes,
            used.bytes,
            area=area.bytes,
            area_address=area.guest_address,
            pieces=pieces,
            spacing=layout.share(HEADER),
            tables=tables.bytes if layout.indirect else None,
            tables_address=tables.guest_address,
            receive=receive,
            features=features,
            base=base,
            kick_fd=self.fds[-2],
            call_fd=self.fds[-1],
        )
        self.drivers.append(driver)
        self.devices.append(
            SplitRing(
                self.guest,
                size,
                table.guest_address,
                available.guest_address,
                used.guest_address,
                writable=receive,
                features=features,
                next_available=base,
                next_used=base,
            )
        )

    def read(self, chain: Chain) -> bytes:
        parts = (self.guest.bytes[s.offset : s.offset + s.length] for s in chain.segments)
        return b"".join(parts)

    def write(self, chain: Chain, data: bytes) -> None:
        for segment in chain.segments:
            part, data = data[: segment.length], data[segment.length :]
            self.guest.bytes[segment.offset : segment.offset + len(part)] = part
        assert not data

    def call(self, ring: SplitRing) -> None:
        """Publish what was pushed, and notify the driver if it wants that."""
        if ring.publish():
            os.eventfd_write(self.fds[1 if ring is self.receive else 3], 1)

    def deliver(self, data: bytes) -> None:
        """Write a frame, with its header, into as many buffers as it needs."""
        chains: list[Chain] = []
        room = 0
        while room < len(data):
            chain = self.receive.pop()
            assert chain is not None, "no buffers are left"
            chains.append(chain)
            room += chain.length
        data = data[:10] + len(chains).to_bytes(2, "little") + data[HEADER:]
        for chain in chains:
            part, data = data[: chain.length], data[chain.length :]
            self.write(chain, part)
            self.receive.push(chain.head, len(part))

    def echo(self, change: Change = unchanged) -> bool:
        """Send back one frame, changed; return whether there was one."""
        chain = self.transmit.pop()
        if chain is None:
            return False
        data = change(self.read(chain))
        if data is not None:
            self.deliver(data)
            self.call(self.receive)
        self.transmit.push(chain.head, 0)
        self.call(self.transmit)
        return True

    @contextmanager
    def running(self, change: Change = unchanged) -> Iterator[None]:
        """Echo frames in another thread, asleep on the kick when there are none."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                while not stop.is_set():
                    self.transmit.disable_notifications()
                    while self.echo(change):
                        pass
                    if not self.transmit.enable_notifications():
                        os.eventfd_read(self.fds[2])
            except BaseException as error:
                failures.append(error)

        os.set_blocking(self.fds[2], True)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            os.eventfd_write(self.fds[2], 1)
            thread.join(10)
            assert not thread.is_alive()
        assert not failures, failures

    def close(self) -> None:
        for driver in self.drivers:
            driver.release()
        self.guest.bytes.release()
        for fd in self.fds:
            os.close(fd)


VERSION_1 = Feature.VIRTIO_F_VERSION_1
MERGEABLE = VERSION_1 | Feature.VIRTIO_NET_F_MRG_RXBUF
EVENT_IDX = Feature.VIRTIO_F_EVENT_IDX
INDIRECT = Feature.VIRTIO_F_INDIRECT_DESC


@contextmanager
def machine(
    *, features: Feature = MERGEABLE | INDIRECT, memory: int = 1 << 20, **arguments: Any
) -> Iterator[Machine]:
    with SharedMemory(memory) as shared:
        made = Machine(shared, features=features, **arguments)
        try:
            yield made
        finally:
            made.close()

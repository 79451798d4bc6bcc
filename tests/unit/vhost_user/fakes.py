"""The two sides of a session that is alone: a device that checks how it is used, and a frontend."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from guestwire.errors import GuestwireError
from guestwire.vhost_user.constants import HEADER_SIZE, ConfigFlag, ProtocolFeature, Request
from guestwire.vhost_user.device import RingConfiguration
from guestwire.vhost_user.memory import MemoryRegion
from guestwire.vhost_user.messages import (
    U64,
    Empty,
    Header,
    MemoryTable,
    Payload,
    Region,
    RingAddress,
    RingDescriptor,
    RingState,
    decode_reply,
    encode_request,
)
from guestwire.vhost_user.session import Session
from guestwire.vhost_user.state import SPOKEN
from guestwire.virtio.features import Feature
from guestwire.virtio.net_config import NetConfig

OFFERED = (
    Feature.VHOST_USER_F_PROTOCOL_FEATURES
    | Feature.VIRTIO_F_VERSION_1
    | Feature.VIRTIO_NET_F_MRG_RXBUF
    | Feature.VIRTIO_NET_F_MTU
)

MEMORY_SIZE = 1 << 20
MEMORY = Region(guest_address=0x1000_0000, size=MEMORY_SIZE, user_address=0x7F00_0000, mmap_offset=0)


def open_descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


class FakeDevice:
    """A device that records what it is told, and insists that the session keeps its promises.

    Attributes:
        calls: every effect, as the name of a method and its arguments.
        fail: errors to raise, by the name of the method.
        running: the rings that run, as they were started, enabled or disabled since.
        consumed: what `stop_ring` adds to the base it was started with.
    """

    def __init__(self, offered: int = OFFERED, protocol: int = SPOKEN | ProtocolFeature.LOG_SHMFD) -> None:
        self.offered = offered
        self.protocol = protocol
        self.calls: list[tuple[object, ...]] = []
        self.fail: dict[str, GuestwireError] = {}
        self.consumed = 0
        self.config = NetConfig(mac=bytes.fromhex("525400123456"))
        self.memory: tuple[MemoryRegion, ...] = ()
        self.running: dict[int, RingConfiguration] = {}

    def _called(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.fail:
            raise self.fail[name]

    def named(self, name: str) -> list[list[object]]:
        """Return the arguments of each call of one method."""
        return [arguments for called, *arguments in self.calls if called == name]

    def offered_features(self) -> int:
        return self.offered

    def offered_protocol_features(self) -> int:
        return self.protocol

    def ring_count(self) -> int:
        return 4

    def set_features(self, features: int) -> None:
        assert not features & ~self.offered
        self._called("set_features", features)

    def set_memory(self, regions: Sequence[MemoryRegion]) -> None:
        assert all(is_open(region.fd) for region in regions)
        assert all(is_open(region.fd) for region in self.memory)
        self._called("set_memory", tuple(regions))
        self.memory = tuple(regions)
        for ring in self.running.values():
            self._check_inside(ring)

    def _check_inside(self, ring: RingConfiguration) -> None:
        for address, length in (
            (ring.descriptor_address, 16 * ring.size),
            (ring.available_address, 6 + 2 * ring.size),
            (ring.used_address, 6 + 8 * ring.size),
        ):
            assert any(
                region.user_address <= address and address + length <= region.user_address + region.size
                for region in self.memory
            )

    def start_ring(self, index: int, ring: RingConfiguration) -> None:
        assert index not in self.running
        assert 0 < ring.size <= 32768
        assert ring.size & (ring.size - 1) == 0
        self._check_inside(ring)
        for descriptor in (ring.kick_fd, ring.call_fd, ring.error_fd):
            assert descriptor is None or not os.get_blocking(descriptor)
        self._called("start_ring", index, ring)
        self.running[index] = ring

    def stop_ring(self, index: int) -> int:
        ring = self.running.pop(index)
        for descriptor in (ring.kick_fd,):
            assert descriptor is None or is_open(descriptor)
        self._called("stop_ring", index)
        return (ring.base + self.consumed) & 0xFFFF

    def enable_ring(self, index: int, enabled: bool) -> None:
        assert index in self.running
        self._called("enable_ring", index, enabled)
        self.running[index] = replace(self.running[index], enabled=enabled)

    def set_ring_call(self, index: int, fd: int | None) -> None:
        assert index in self.running
        assert fd is None or not os.get_blocking(fd)
        self._called("set_ring_call", index, fd)

    def set_ring_error(self, index: int, fd: int | None) -> None:
        assert index in self.running
        assert fd is None or not os.get_blocking(fd)
        self._called("set_ring_error", index, fd)

    def read_config(self, offset: int, size: int) -> bytes:
        self._called("read_config", offset, size)
        return self.config.read(offset, size)

    def write_config(self, offset: int, data: bytes, flag: ConfigFlag) -> None:
        self._called("write_config", offset, data, flag)

    def set_mtu(self, mtu: int) -> None:
        self._called("set_mtu", mtu)

    def announce(self, mac: bytes) -> None:
        self._called("announce", mac)

    def set_status(self, status: int) -> None:
        assert status
        self._called("set_status", status)

    def reset(self) -> None:
        assert not self.running
        self._called("reset")


class FakeFrontend:
    """A frontend without a socket: each of its messages reaches the session whole or in pieces.

    Attributes:
        refused: the errors that the session answered without ending.
    """

    def __init__(self, device: FakeDevice, piece: int) -> None:
        self.device = device
        self.refused: list[GuestwireError] = []
        self.session = Session(device, self.refused.append)
        self._piece = piece
        self._resources = ExitStack()

    def begin(self) -> None:
        """Start a session anew, with what the device offers now."""
        self.session.close()
        self.device.calls.clear()
        self.session = Session(self.device, self.refused.append)

    def own(self, descriptor: int) -> int:
        self._resources.callback(os.close, descriptor)
        return descriptor

    def eventfd(self) -> int:
        return self.own(os.eventfd(0))

    def memfd(self) -> int:
        descriptor = self.own(os.memfd_create("guest"))
        os.truncate(descriptor, MEMORY_SIZE)
        return descriptor

    def close(self) -> None:
        self._resources.close()
        self.session.close()

    def transmit(self, data: bytes, descriptors: Sequence[int] = ()) -> bytes:
        """Bring a message over, with copies of the descriptors as a socket makes them."""
        pending = [os.dup(descriptor) for descriptor in descriptors]
        complete = False
        while data:
            size = min(self._piece, self.session.bytes_wanted)
            piece, data = data[:size], data[size:]
            complete = self.session.receive(piece, pending)
            pending = []
            assert complete == (not data)
        return self.session.handle()

    def send(
        self,
        request: Request,
        payload: Payload | None = None,
        *descriptors: int,
        need_reply: bool = False,
    ) -> Payload | None:
        """Make a request and return the reply, if there is one."""
        message = encode_request(request, payload, need_reply=need_reply)
        reply = self.transmit(message, descriptors)
        if not reply:
            return None
        header = Header.decode(reply[:HEADER_SIZE])
        assert header.size == len(reply) - HEADER_SIZE
        return decode_reply(request, header, reply[HEADER_SIZE:])

    def acknowledged(self, request: Request, payload: Payload | None, *descriptors: int) -> bool:
        """Make a request and ask whether it was followed."""
        reply = self.send(request, payload, *descriptors, need_reply=True)
        assert isinstance(reply, U64)
        return reply.value == 0

    # What a frontend does before the request that a test is about.

    def negotiate(
        self,
        features: int = OFFERED,
        protocol_features: int = SPOKEN & ~ProtocolFeature.STATUS,
    ) -> None:
        self.send(Request.SET_OWNER)
        self.send(Request.SET_PROTOCOL_FEATURES, U64(protocol_features))
        self.send(Request.SET_FEATURES, U64(features))

    def share_memory(self) -> None:
        self.send(Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), self.memfd())

    def set_up_ring(self, index: int, size: int = 256, base: int = 0) -> None:
        """Tell all of a ring but its kick."""
        start = MEMORY.user_address + index * 0x10000
        self.send(Request.SET_VRING_NUM, RingState(index, size))
        self.send(Request.SET_VRING_BASE, RingState(index, base))
        self.send(
            Request.SET_VRING_ADDR,
            RingAddress(index, 0, start, start + 0x8000, start + 0x4000, 0),
        )

    def kick(self, index: int) -> None:
        self.send(Request.SET_VRING_KICK, RingDescriptor(index), self.eventfd())

    def enable(self, index: int, enabled: bool = True) -> None:
        self.send(Request.SET_VRING_ENABLE, RingState(index, int(enabled)))

    def run_ring(self, index: int = 0) -> None:
        """Go all the way to a ring that runs and is enabled."""
        self.negotiate()
        self.share_memory()
        self.set_up_ring(index)
        self.kick(index)
        self.enable(index)
        assert index in self.device.running

    def get(self, request: Request, payload: Payload | None = None) -> int:
        reply = self.send(request, payload or Empty())
        assert isinstance(reply, U64)
        return reply.value

"""A frontend that sends what no frontend should, and what the log must say of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guestwire.testing import Frontend
from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.messages import encode_request
from guestwire.vhost_user.payloads import (
    Payload,
    Region,
    RingAddress,
    RingDescriptor,
    RingState,
    SingleRegion,
)
from guestwire.virtio.features import Feature

MIB = 1 << 20

FEATURES = Feature.VIRTIO_F_VERSION_1 | Feature.VHOST_USER_F_PROTOCOL_FEATURES
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.RARP
    | ProtocolFeature.MTU
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)


class Rogue:
    """A frontend as a test needs it, with the files that it sends."""

    def __init__(self, path: Path, acknowledged: bool) -> None:
        self.frontend = Frontend.connect(path)
        self.resources = contextlib.ExitStack()
        self.resources.callback(self.frontend.close)
        self.frontend.get_features()
        acknowledgements = ProtocolFeature.REPLY_ACK if acknowledged else ProtocolFeature(0)
        self.frontend.set_protocol_features(PROTOCOL_FEATURES | acknowledgements)
        self.frontend.set_owner()
        self.frontend.set_features(FEATURES)

    def request(self, request: Request, payload: Payload | None = None, *fds: int) -> None:
        """Send a request that the backend will not like."""
        self.frontend.request(request, payload, fds)

    def send(self, data: bytes, *fds: int) -> None:
        """Send any bytes, with files beside them."""
        assert socket.send_fds(self.frontend.socket, [data], fds) == len(data)

    def own(self, fd: int) -> int:
        """Keep a descriptor open until the end."""
        self.resources.callback(os.close, fd)
        return fd

    def eventfd(self) -> int:
        return self.own(os.eventfd(0, os.EFD_NONBLOCK))

    def memfd(self, size: int = 2 * MIB) -> int:
        fd = self.own(os.memfd_create("rogue"))
        os.ftruncate(fd, size)
        return fd

    def memory(self) -> None:
        """Share 2 MiB at guest address 0, user address 256 MiB."""
        self.request(Request.ADD_MEM_REG, region(), self.memfd())

    def ring(self, index: int, *, size: int = 256, address: RingAddress | None = None) -> None:
        """Set up a ring in that memory but for its kick."""
        self.request(Request.SET_VRING_NUM, RingState(index, size))
        self.request(Request.SET_VRING_BASE, RingState(index, 0))
        self.request(Request.SET_VRING_ADDR, address or ring_at(index))
        self.request(Request.SET_VRING_ENABLE, RingState(index, 1))

    def kick(self, index: int, fd: int | None = None) -> None:
        self.request(Request.SET_VRING_KICK, RingDescriptor(index), self.eventfd() if fd is None else fd)


def region(guest: int = 0, size: int = 2 * MIB, user: int = 256 * MIB, offset: int = 0) -> SingleRegion:
    return SingleRegion(Region(guest, size, user, offset))


def ring_at(index: int, **changes: int) -> RingAddress:
    start = 256 * MIB + index * 65536
    fields = {"flags": 0, "descriptor": start, "used": start + 8192, "available": start + 4096, "log": 0}
    return RingAddress(index, **{**fields, **changes})


@dataclass(frozen=True)
class Offence:
    """Something that no frontend should do, and how the log must speak of it."""

    name: str
    commit: Callable[[Rogue], None]
    words: str
    remedy: str = "the fault is the frontend's"


def sends(request: Request, payload: Payload | None = None, files: int = 0) -> Callable[[Rogue], None]:
    """The request, with so many files that are good for nothing else."""
    return lambda rogue: rogue.send(
        encode_request(request, payload), *(rogue.eventfd() for _ in range(files))
    )


def asks(request: Request, payload: Payload | None = None, files: int = 0) -> Callable[[Rogue], None]:
    """The request, acknowledged if that was negotiated."""
    return lambda rogue: rogue.request(request, payload, *(rogue.eventfd() for _ in range(files)))

"""The messages of vhost-user as they lie on the wire: encode, decode, and check their syntax.

A message is a header of three 32-bit numbers, a payload, and any file descriptors that came with
it.  This module knows the shape of each: sizes, counts, flags, how many descriptors belong to it.
What a message *means*, and whether it may be sent now, is the session's to say.  Both roles use it:
a backend decodes requests and encodes replies, a frontend the other way round.

Source: QEMU, docs/interop/vhost-user.rst, "Message Specification".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from guestwire.vhost_user.constants import (
    HEADER_SIZE,
    MAX_PAYLOAD_SIZE,
    VERSION,
    VERSION_MASK,
    BackendRequest,
    MessageFlag,
    Request,
)
from guestwire.vhost_user.payloads import (
    U64,
    Announcement,
    Config,
    Empty,
    MalformedMessageError,
    MemoryTable,
    Payload,
    Region,
    RingAddress,
    RingDescriptor,
    RingState,
    SingleRegion,
)

__all__ = [
    "FORMATS",
    "U64",
    "Announcement",
    "Config",
    "Empty",
    "Format",
    "Header",
    "MalformedMessageError",
    "MemoryTable",
    "Payload",
    "Region",
    "RingAddress",
    "RingDescriptor",
    "RingState",
    "SingleRegion",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
    "name_of",
]


def name_of(request: int) -> str:
    """Return how the specification spells a frontend's request, or its number if it has none."""
    try:
        return f"VHOST_USER_{Request(request).name}"
    except ValueError:
        return f"request {request}"


@dataclass(frozen=True, slots=True)
class Header:
    """The first 12 bytes of a message ("Header").

    Attributes:
        request: a `Request` or `BackendRequest`, as a number, because a peer can send any.
        flags: `MessageFlag` bits, without the version.
        size: bytes of payload that follow.
    """

    request: int
    flags: MessageFlag
    size: int

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=III")

    @property
    def need_reply(self) -> bool:
        """Whether the sender waits for an acknowledgement (VHOST_USER_PROTOCOL_F_REPLY_ACK)."""
        return MessageFlag.NEED_REPLY in self.flags

    def encode(self) -> bytes:
        """Return the 12 bytes of this header."""
        return self._LAYOUT.pack(self.request, VERSION | self.flags, self.size)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a header from exactly 12 bytes.

        Raises:
            MalformedMessageError: wrong version, an unknown flag, or a payload no message has.
        """
        if len(data) != HEADER_SIZE:
            raise MalformedMessageError(f"a header has {HEADER_SIZE} bytes, not {len(data)}")
        request, flags, size = cls._LAYOUT.unpack(data)
        if flags & VERSION_MASK != VERSION:
            raise MalformedMessageError(
                f"{name_of(request)}: version {flags & VERSION_MASK}, only version {VERSION} exists"
            )
        unknown = flags & ~(VERSION_MASK | int(MessageFlag.REPLY | MessageFlag.NEED_REPLY))
        if unknown:
            raise MalformedMessageError(f"{name_of(request)}: unknown flags {unknown:#x}")
        if size > MAX_PAYLOAD_SIZE:
            raise MalformedMessageError(
                f"{name_of(request)}: payload of {size} bytes, the largest has {MAX_PAYLOAD_SIZE}"
            )
        return cls(request, MessageFlag(flags & ~VERSION_MASK), size)


def _none(_payload: Payload) -> range:
    return range(1)


def _one(_payload: Payload) -> range:
    return range(1, 2)


def _none_or_stray(_payload: Payload) -> range:
    return range(2)


def _one_unless_polled(payload: Payload) -> range:
    assert isinstance(payload, RingDescriptor)
    return _one(payload) if payload.has_descriptor else _none(payload)


def _one_each_region(payload: Payload) -> range:
    assert isinstance(payload, MemoryTable)
    return range(len(payload.regions), len(payload.regions) + 1)


@dataclass(frozen=True, slots=True)
class Format:
    """The shape of one request.

    Attributes:
        payload: what it carries.
        reply: what its own reply carries; None if it is answered only under REPLY_ACK.
        descriptors: how many file descriptors may come with it.
    """

    payload: type[Payload]
    reply: type[Payload] | None = None
    descriptors: Callable[[Payload], range] = _none


FORMATS: dict[Request, Format] = {
    Request.GET_FEATURES: Format(Empty, reply=U64),
    Request.SET_FEATURES: Format(U64),
    Request.SET_OWNER: Format(Empty),
    Request.RESET_OWNER: Format(Empty),
    Request.SET_MEM_TABLE: Format(MemoryTable, descriptors=_one_each_region),
    Request.SET_VRING_NUM: Format(RingState),
    Request.SET_VRING_ADDR: Format(RingAddress),
    Request.SET_VRING_BASE: Format(RingState),
    Request.GET_VRING_BASE: Format(RingState, reply=RingState),
    Request.SET_VRING_KICK: Format(RingDescriptor, descriptors=_one_unless_polled),
    Request.SET_VRING_CALL: Format(RingDescriptor, descriptors=_one_unless_polled),
    Request.SET_VRING_ERR: Format(RingDescriptor, descriptors=_one_unless_polled),
    Request.GET_PROTOCOL_FEATURES: Format(Empty, reply=U64),
    Request.SET_PROTOCOL_FEATURES: Format(U64),
    Request.GET_QUEUE_NUM: Format(Empty, reply=U64),
    Request.SET_VRING_ENABLE: Format(RingState),
    Request.SEND_RARP: Format(Announcement),
    Request.NET_SET_MTU: Format(U64),
    Request.SET_BACKEND_REQ_FD: Format(Empty, descriptors=_one),
    Request.GET_CONFIG: Format(Config, reply=Config),
    Request.SET_CONFIG: Format(Config),
    Request.RESET_DEVICE: Format(Empty),
    Request.GET_MAX_MEM_SLOTS: Format(Empty, reply=U64),
    Request.ADD_MEM_REG: Format(SingleRegion, descriptors=_one),
    # "For compatibility with existing incorrect implementations, the back-end MAY accept messages
    # with one file descriptor. If a file descriptor is passed, the back-end MUST close it."
    Request.REM_MEM_REG: Format(SingleRegion, descriptors=_none_or_stray),
    Request.SET_STATUS: Format(U64),
    Request.GET_STATUS: Format(Empty, reply=U64),
}
"""The requests that exist here.  A request that is not in this table is not spoken."""


def encode_request(
    request: Request | BackendRequest, payload: Payload | None = None, *, need_reply: bool = False
) -> bytes:
    """Return the bytes of a request, in either direction; descriptors go beside them."""
    body = (payload or Empty()).encode()
    flags = MessageFlag.NEED_REPLY if need_reply else MessageFlag(0)
    return Header(request, flags, len(body)).encode() + body


def encode_reply(request: int, payload: Payload) -> bytes:
    """Return the bytes of a reply: the request's own, or a `U64` acknowledgement (0 is success)."""
    body = payload.encode()
    return Header(request, MessageFlag.REPLY, len(body)).encode() + body


def decode_request(header: Header, body: bytes, descriptor_count: int) -> Payload:
    """Read a frontend's request.

    Args:
        header: its header.
        body: the payload bytes, as many as the header says.
        descriptor_count: file descriptors that came with the message.

    Raises:
        MalformedMessageError: an unknown request, or one that has not its own shape; which request
            it was is for the caller to add.
    """
    if MessageFlag.REPLY in header.flags:
        raise MalformedMessageError("it is marked as a reply, but nothing was asked")
    try:
        shape = FORMATS[Request(header.request)]
    except (KeyError, ValueError):
        raise MalformedMessageError("this request was not offered") from None
    payload = shape.payload.decode(body)
    allowed = shape.descriptors(payload)
    if descriptor_count not in allowed:
        raise MalformedMessageError(
            f"{descriptor_count} file descriptors came with it instead of {allowed[-1]}"
        )
    return payload


def decode_reply(request: Request, header: Header, body: bytes) -> Payload:
    """Read a backend's reply to `request`: its own reply, or else an acknowledgement.

    A GET_CONFIG that failed is answered without a payload, which gives `Empty`.

    Raises:
        MalformedMessageError: the message is no reply, or not to this request, or not of its shape.
    """
    if header.request != request or header.flags != MessageFlag.REPLY:
        raise MalformedMessageError(
            f"{name_of(request)}: expected its reply, got {name_of(header.request)} "
            f"with flags {header.flags!r}"
        )
    if request is Request.GET_CONFIG and not body:
        return Empty()
    try:
        return (FORMATS[request].reply or U64).decode(body)
    except MalformedMessageError as error:
        raise MalformedMessageError(f"reply to {name_of(request)}: {error}") from None

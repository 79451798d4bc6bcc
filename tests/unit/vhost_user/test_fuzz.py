"""Any bytes and any descriptors: a session acts or raises FrontendError, never another error.

And no descriptor leaks; the device asserts that the session keeps its own promises meanwhile.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import HEADER_SIZE, ProtocolFeature, Request
from guestwire.vhost_user.messages import FORMATS, Region
from guestwire.vhost_user.session import Session
from guestwire.vhost_user.state import SPOKEN
from unit.vhost_user.fakes import MEMORY, OFFERED, FakeDevice, open_descriptors

# Numbers near those that a session takes, so that sequences get far.
INDEXES = st.sampled_from([0, 1, 2, 3, 4, 255, 2**32 - 1])
NUMBERS = st.sampled_from([0, 1, 2, 4, 64, 256, 300, 32768, 65535, 65536, 2**32 - 1])
ADDRESSES = st.builds(
    lambda base, offset: (base + offset) % 2**64,
    st.sampled_from([0, MEMORY.user_address, MEMORY.user_address + MEMORY.size, 2**63, 2**64 - 1]),
    st.sampled_from([0, 16, 0x1000, 0x8000, -16, -1, 2]),
)
U64S = st.one_of(
    st.sampled_from([0, 1, 4, 15, int(OFFERED), int(SPOKEN), 1500, 0x100, 0x101, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
REGIONS = st.one_of(
    st.sampled_from([MEMORY, *[Region(number << 21, 1 << 20, number << 21, 0) for number in range(4)]]).map(
        Region.encode
    ),
    st.tuples(
        st.sampled_from([0, MEMORY.guest_address, MEMORY.guest_address + MEMORY.size, 2**64 - 1]),
        st.sampled_from([0, MEMORY.size, MEMORY.size * 2, 2**63]),
        ADDRESSES,
        st.sampled_from([0, 1, 4096, 2**63 - 1]),
    ).map(lambda fields: struct.pack("=4Q", *fields)),
)


def payloads(request: Request) -> st.SearchStrategy[bytes]:
    """Payloads of a request that have its shape, more often than not."""
    match FORMATS[request].payload.__name__:
        case "Empty":
            shaped = st.just(b"")
        case "RingState":
            shaped = st.tuples(INDEXES, NUMBERS).map(lambda each: struct.pack("=II", *each))
        case "RingAddress":
            shaped = st.tuples(
                INDEXES, st.sampled_from([0, 1, 2]), ADDRESSES, ADDRESSES, ADDRESSES, ADDRESSES
            ).map(lambda each: struct.pack("=IIQQQQ", *each))
        case "MemoryTable":
            shaped = st.lists(REGIONS, max_size=9).map(
                lambda each: struct.pack("=II", len(each), 0) + b"".join(each)
            )
        case "SingleRegion":
            shaped = REGIONS.map(lambda region: bytes(8) + region)
        case "Config":
            shaped = st.tuples(INDEXES, st.sampled_from([0, 1, 2]), st.binary(max_size=256)).map(
                lambda each: struct.pack("=III", each[0], len(each[2]), each[1]) + each[2]
            )
        case _:
            shaped = U64S.map(lambda value: struct.pack("=Q", value))
    return shaped


def right_count(request: int, body: bytes) -> int:
    """Return how many descriptors belong to a message, if that can be told."""
    try:
        shape = FORMATS[Request(request)]
        return shape.descriptors(shape.payload.decode(body))[-1]
    except (KeyError, ValueError):
        return 1


REQUESTS = st.one_of(
    *[
        st.tuples(st.just(int(request)), st.sampled_from([9, 1]), payloads(request), st.none())
        for request in FORMATS
    ]
)
ANYTHING = st.tuples(
    st.one_of(st.sampled_from([int(request) for request in Request]), st.integers(0, 2**32 - 1)),
    st.sampled_from([1, 9, 5, 0, 0x11, 2**32 - 1]),
    st.binary(max_size=300),
    st.integers(0, 9),
)


class Descriptors:
    """One descriptor of each kind that could matter, to be copied for each message."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.all = [
            os.eventfd(0),
            os.memfd_create("guest"),
            reading,
            writing,
            os.open("/", os.O_PATH),
            os.open("/dev/null", os.O_RDWR),
        ]

    def copies(self, count: int) -> list[int]:
        return [os.dup(self.all[number % len(self.all)]) for number in range(count)]

    def close(self) -> None:
        for descriptor in self.all:
            os.close(descriptor)


def feed(session: Session, data: bytes, descriptors: list[int]) -> None:
    while data:
        size = session.bytes_wanted
        piece, data = data[:size], data[size:]
        if session.receive(piece, descriptors):
            session.handle()
        descriptors = []
    session.end_of_stream()


def set_up(session: Session, descriptors: Descriptors, protocol: int) -> None:
    """Bring a session to where ring 0 runs, so that what follows meets it."""
    start = MEMORY.user_address
    for request, body, count in (
        (Request.SET_PROTOCOL_FEATURES, struct.pack("=Q", protocol), 0),
        (Request.SET_FEATURES, struct.pack("=Q", OFFERED), 0),
        (
            Request.SET_MEM_TABLE,
            struct.pack("=II4Q", 1, 0, MEMORY.guest_address, MEMORY.size, MEMORY.user_address, 0),
            1,
        ),
        (Request.SET_VRING_NUM, struct.pack("=II", 0, 256), 0),
        (
            Request.SET_VRING_ADDR,
            struct.pack("=IIQQQQ", 0, 0, start, start + 8192, start + 4096, 0),
            0,
        ),
        (Request.SET_VRING_KICK, struct.pack("=Q", 0), 1),
        *[(Request.SET_STATUS, struct.pack("=Q", 15), 0)] * bool(protocol & ProtocolFeature.STATUS),
    ):
        header = struct.pack("=III", request, 1, len(body))
        feed(session, header + body, descriptors.copies(count))


@given(
    messages=st.lists(st.one_of(REQUESTS, ANYTHING), max_size=25),
    protocol=st.sampled_from([int(SPOKEN), int(SPOKEN & ~ProtocolFeature.STATUS)]),
    failing=st.sets(st.sampled_from(["set_memory", "start_ring", "set_features", "set_ring_call"])),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_messages(messages, protocol, failing):
    before = open_descriptors()
    descriptors = Descriptors()
    device = FakeDevice(protocol=protocol)
    session = None
    for request, flags, body, count in messages:
        if session is None:
            device.fail = {}
            session = Session(device, lambda _: None)
            set_up(session, descriptors, protocol)
            assert 0 in device.running
            device.fail = {name: HostError(name) for name in failing}
        header = struct.pack("=III", request, flags, len(body))
        number = right_count(request, body) if count is None else count
        try:
            feed(session, header + body, descriptors.copies(number))
        except (FrontendError, HostError):  # the second is the device's own
            device.fail = {}
            session.close()
            session = None
    device.fail = {}
    if session is not None:
        session.close()
    descriptors.close()
    assert not device.running
    assert device.memory == ()
    assert open_descriptors() == before


@given(data=st.binary(max_size=600), count=st.integers(0, 20))
@settings(max_examples=300, deadline=None)
def test_bytes(data, count):
    before = open_descriptors()
    descriptors = Descriptors()
    session = Session(FakeDevice(), lambda _: None)
    with suppress(FrontendError):
        if data:
            feed(session, data, descriptors.copies(count))
    session.close()
    descriptors.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("length", range(1, HEADER_SIZE))
def test_descriptors_of_an_unfinished_header_are_closed(length):
    before = open_descriptors()
    descriptors = Descriptors()
    session = Session(FakeDevice(), lambda _: None)
    session.receive(bytes(length), descriptors.copies(6))
    session.close()
    descriptors.close()
    assert open_descriptors() == before

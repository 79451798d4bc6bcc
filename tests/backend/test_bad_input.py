"""Bytes that are no message, and messages that may not be sent: they end the session, and no more.

Each gives one clear line in the log; nothing is left; the other guest of the process notices nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

import pytest

from backend.house import House, house
from backend.rogue import MIB, Offence, Rogue, region, sends
from guestwire.testing import FakeGuest, FrameStream
from guestwire.vhost_user.constants import MessageFlag, Request
from guestwire.vhost_user.messages import Header
from guestwire.vhost_user.payloads import MemoryTable, RingDescriptor, RingState

REPETITIONS = 3


@pytest.fixture(scope="module")
def inhabited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


def half(data: bytes) -> Callable[[Rogue], None]:
    def commit(rogue: Rogue) -> None:
        rogue.send(data)
        rogue.frontend.close()

    return commit


def raw(
    request: int, body: bytes = b"", *, size: int | None = None, flags: int = 1
) -> Callable[[Rogue], None]:
    """Any header, and what follows it."""
    header = struct.pack("=III", request, flags, len(body) if size is None else size)
    return lambda rogue: rogue.send(header + body)


SET_FEATURES = Header(Request.SET_FEATURES, MessageFlag(0), 8).encode() + bytes(8)

NO_MESSAGES = [
    Offence("half a header", half(SET_FEATURES[:5]), "ended with 5 of the 12 bytes of a message header"),
    Offence("no payload", half(SET_FEATURES[:12]), "SET_FEATURES.* ended with 0 of the 8 bytes"),
    Offence("half a payload", half(SET_FEATURES[:15]), "SET_FEATURES.* ended with 3 of the 8 bytes"),
    Offence("payload too short", raw(2, bytes(4)), "SET_FEATURES: payload of 4 bytes instead of 8"),
    Offence("payload too long", raw(2, bytes(16)), "SET_FEATURES: payload of 16 bytes instead of 8"),
    Offence("payload uncalled for", raw(1, bytes(8)), "GET_FEATURES: payload of 8 bytes instead of none"),
    Offence("payload of 4 GiB", raw(5, size=0xFFFFFFFF), "SET_MEM_TABLE: payload of 4294967295 bytes"),
    Offence("version 0", raw(1, flags=0), "GET_FEATURES: version 0, only version 1 exists"),
    Offence("version 2", raw(1, flags=2), "GET_FEATURES: version 2, only version 1 exists"),
    Offence("version 3", raw(1, flags=3), "GET_FEATURES: version 3, only version 1 exists"),
    Offence("unknown flag", raw(1, flags=0x11), "GET_FEATURES: unknown flags 0x10"),
    Offence("a reply", raw(1, flags=5), "GET_FEATURES: it is marked as a reply"),
    Offence("request 0", raw(0), "request 0: this request was not offered"),
    Offence("request 99", raw(99, bytes(8)), "request 99: this request was not offered"),
    Offence("SET_LOG_BASE", raw(6, bytes(16)), "SET_LOG_BASE: this request was not offered"),
    Offence("postcopy", raw(28), "POSTCOPY_ADVISE: this request was not offered"),
    Offence("a file uncalled for", sends(Request.GET_FEATURES, files=1), "1 file descriptors came with it"),
    Offence("nine files", sends(Request.GET_FEATURES, files=9), "9 file descriptors came with one message"),
    Offence(
        "253 files", sends(Request.GET_FEATURES, files=253), "253 file descriptors came with one message"
    ),
    Offence(
        "kick without a file",
        sends(Request.SET_VRING_KICK, RingDescriptor(0)),
        "SET_VRING_KICK: 0 file descriptors came with it instead of 1",
    ),
    Offence(
        "no kick with a file",
        sends(Request.SET_VRING_KICK, RingDescriptor(0, has_descriptor=False), 1),
        "SET_VRING_KICK: 1 file descriptors came with it instead of 0",
    ),
    Offence(
        "two regions and one file",
        sends(Request.SET_MEM_TABLE, MemoryTable((region().region, region(MIB * 4).region)), 1),
        "SET_MEM_TABLE: 1 file descriptors came with it instead of 2",
    ),
    Offence("region without a file", sends(Request.ADD_MEM_REG, region()), "ADD_MEM_REG: 0 file descriptors"),
    Offence(
        "nine regions",
        raw(5, struct.pack("=II", 9, 0) + bytes(8 * 32)),
        "SET_MEM_TABLE: 9 regions, a table has at most 8",
    ),
    Offence(
        "fewer regions than announced",
        raw(5, struct.pack("=II", 2, 0) + bytes(32)),
        "SET_MEM_TABLE: payload of 40 bytes for 2 regions",
    ),
    Offence(
        "kick with unknown bits", raw(12, struct.pack("=Q", 0x200)), "SET_VRING_KICK: unknown bits 0x200"
    ),
    Offence(
        "configuration too large",
        raw(24, struct.pack("=III", 0, 257, 0) + bytes(200)),
        "GET_CONFIG: ",
    ),
    Offence("status unasked", raw(39, bytes(8)), "SET_STATUS: it is not legal: .*STATUS was not negotiated"),
    Offence("reset unasked", raw(34), "RESET_DEVICE: it is not legal: .*RESET_DEVICE was not offered"),
    Offence(
        "base of ring 9",
        sends(Request.GET_VRING_BASE, RingState(9, 0)),
        "ring 9 does not exist, there are 2",
        "give this guest 5 queue pairs",
    ),
]


@pytest.mark.parametrize("offence", NO_MESSAGES, ids=lambda offence: offence.name)
def test_what_is_no_message_ends_the_session(inhabited: House, offence: Offence) -> None:
    mark = len(inhabited.backend.text())
    with inhabited.undisturbed():
        for _ in range(REPETITIONS):
            with inhabited.visitor():
                rogue = Rogue(inhabited.rogue, acknowledged=True)
                with rogue.resources:
                    offence.commit(rogue)
                    if rogue.frontend.socket.fileno() >= 0:
                        rogue.frontend.expect_end()
    said = inhabited.last_complaints(mark)
    assert len(said) == REPETITIONS, said
    for line in said:
        assert re.search(f"^the session ended: .*{offence.words}", line), line
        assert re.search(f"; .*{offence.remedy}", line), line


def test_the_socket_serves_a_guest_after_all_that(inhabited: House) -> None:
    with inhabited.undisturbed(), inhabited.visitor(), FakeGuest(inhabited.rogue) as guest:
        assert guest.pair.exchange(FrameStream((60, 1514)), 1000).lost == 0

"""Events of network interfaces: what the kernel's messages say, and what they do not."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from guestwire.host.link_monitor import LinkEvent, LinkMonitor, parse

NEWLINK, DELLINK, NEWADDR = 16, 17, 20
UP, LOWER_UP = 1, 1 << 16
IFNAME, MTU, CARRIER = 3, 4, 33
BRIDGE = 7


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust(-(-len(value) // 4) * 4, b"\0")


def message(
    kind: int = NEWLINK,
    *,
    family: int = 0,
    index: int = 7,
    flags: int = UP | LOWER_UP,
    attributes: bytes = b"",
) -> bytes:
    body = struct.pack("=BxHiII", family, 1, index, flags, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


FULL = attribute(IFNAME, b"eth12\0") + attribute(MTU, struct.pack("=I", 1500))


def events(data: bytes) -> list[LinkEvent]:
    return list(parse(data))


def test_what_a_message_says() -> None:
    assert events(message(attributes=FULL)) == [LinkEvent(7, "eth12", True, True, 1500, False)]
    (down,) = events(message(flags=0, attributes=FULL))
    assert (down.up, down.carrier) == (False, False)
    (gone,) = events(message(DELLINK, attributes=FULL))
    assert gone.gone


def test_the_carrier_attribute_is_believed_before_the_flag() -> None:
    (event,) = events(message(attributes=FULL + attribute(CARRIER, b"\0")))
    assert (event.up, event.carrier) == (True, False)


def test_several_messages_in_one_read() -> None:
    both = message(index=1, attributes=FULL) + message(DELLINK, index=2, attributes=FULL)
    assert [(event.index, event.gone) for event in events(both)] == [(1, False), (2, True)]


def test_an_interface_that_leaves_a_bridge_is_not_gone() -> None:
    assert events(message(DELLINK, family=BRIDGE, attributes=FULL)) == []


def test_other_messages_are_passed_over() -> None:
    assert [event.index for event in events(message(NEWADDR) + message(index=3))] == [3]


@pytest.mark.parametrize("length", [0, 15, 17, 31, 33, 40])
def test_a_message_that_is_cut_off_harms_nobody(length: int) -> None:
    for event in events(message(attributes=FULL)[:length]):
        assert event.index == 7


def test_a_length_of_nothing_ends_it() -> None:
    assert events(bytes(64)) == []


@pytest.fixture
def monitor() -> Iterator[LinkMonitor]:
    with LinkMonitor() as made:
        yield made


def test_nothing_has_happened(monitor: LinkMonitor) -> None:
    assert monitor.fileno() >= 0
    monitor.read()
    assert monitor.read() == []


class Overrun:
    """A socket whose buffer was full."""

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    def close(self) -> None:
        """Nothing to close."""


class Talker(Overrun):
    """A socket on which somebody else than the kernel says something, and then the kernel."""

    def __init__(self) -> None:
        self.said = [(message(index=1), (4711, 1)), (message(index=2), (0, 1))]

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if not self.said:
            raise BlockingIOError
        return self.said.pop(0)


def replace_socket(monitor: LinkMonitor, other: Overrun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_socket", other)


def test_events_that_were_thrown_away(monitor: LinkMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        replace_socket(monitor, Overrun(), patch)
        assert monitor.read() is None


def test_only_the_kernel_is_believed(monitor: LinkMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        replace_socket(monitor, Talker(), patch)
        found = monitor.read()
    assert found is not None
    assert [event.index for event in found] == [2]


def test_it_asks_for_links_only(monitor: LinkMonitor) -> None:
    with socket.socket(fileno=socket.dup(monitor.fileno())) as same:
        assert same.getsockname()[1] == 1

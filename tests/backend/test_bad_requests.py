"""Requests that may be sent but cannot be followed, as their payload contradicts what is.

They are refused if the frontend asked for acknowledgements, and the session goes on; otherwise it would
never know, and the session ends. Either way there is one clear line in the log, nothing is left, and the
other guest of the process notices nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.house import House, house
from backend.rogue import FEATURES, MIB, PROTOCOL_FEATURES, Offence, Rogue, asks, region, ring_at
from guestwire.testing import BackendError, FakeGuest, FrameStream
from guestwire.vhost_user.constants import ConfigFlag, ProtocolFeature, Request
from guestwire.vhost_user.payloads import (
    U64,
    Announcement,
    Config,
    MemoryTable,
    RingDescriptor,
    RingState,
    SingleRegion,
)
from guestwire.virtio.features import Feature

REPETITIONS = 3


@pytest.fixture(scope="module")
def inhabited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


def with_memory(*requests: Callable[[Rogue], None]) -> Callable[[Rogue], None]:
    def commit(rogue: Rogue) -> None:
        rogue.memory()
        for request in requests:
            request(rogue)

    return commit


def starts(**options: int) -> Callable[[Rogue], None]:
    """A ring with something wrong in its addresses, which shows when it is kicked."""

    def commit(rogue: Rogue) -> None:
        rogue.memory()
        rogue.ring(0, address=ring_at(0, **options))
        rogue.kick(0)

    return commit


def shares(added: SingleRegion, file: Callable[[Rogue], int] = Rogue.memfd) -> Callable[[Rogue], None]:
    return lambda rogue: rogue.request(Request.ADD_MEM_REG, added, file(rogue))


def pipe(rogue: Rogue) -> int:
    read, write = os.pipe()
    rogue.own(write)
    return rogue.own(read)


def directory(rogue: Rogue) -> int:
    return rogue.own(os.open("/", os.O_RDONLY))


def read_only(rogue: Rogue) -> int:
    return rogue.own(os.open(f"/proc/self/fd/{rogue.memfd()}", os.O_RDONLY))


def path_only(rogue: Rogue) -> int:
    return rogue.own(os.open("/dev/null", os.O_PATH))


def kick_with(file: Callable[[Rogue], int]) -> Callable[[Rogue], None]:
    """Two good rings, one of them kicked by a file that cannot."""

    def commit(rogue: Rogue) -> None:
        rogue.memory()
        rogue.ring(0)
        rogue.kick(0)
        rogue.ring(1)
        rogue.kick(1, file(rogue))

    return commit


def number(index: int, size: int) -> Callable[[Rogue], None]:
    return asks(Request.SET_VRING_NUM, RingState(index, size))


def address(**changes: int) -> Callable[[Rogue], None]:
    return asks(Request.SET_VRING_ADDR, ring_at(0, **changes))


SIZE = "set the queue size in the frontend"
SHARE = "share it: -object memory-backend-memfd,share=on"
HARMLESS = "share memory of a memfd, of tmpfs or of hugetlbfs"
QUEUES = "give this guest .* queue pairs, or ask for no more"
LAST = 256 * MIB + 2 * MIB  # the end of the memory

IMPOSSIBLE = [
    Offence(
        "a feature never offered",
        asks(Request.SET_FEATURES, U64(FEATURES | Feature.VIRTIO_F_RING_RESET)),
        "SET_FEATURES: features that were never offered: VIRTIO_F_RING_RESET",
        "switch them off in the frontend",
    ),
    Offence(
        "a feature that does not exist",
        asks(Request.SET_FEATURES, U64(FEATURES | 1 << 47)),
        "SET_FEATURES: features that were never offered: bit 47",
        "switch them off in the frontend",
    ),
    Offence(
        "a protocol feature never offered",
        asks(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES | ProtocolFeature.INFLIGHT_SHMFD)),
        "SET_PROTOCOL_FEATURES: protocol features that were never offered: INFLIGHT_SHMFD",
    ),
    Offence("size of ring 2", number(2, 256), "SET_VRING_NUM: ring 2 does not exist, there are 2", QUEUES),
    Offence("size of ring 2^32 - 1", number(2**32 - 1, 256), "ring 4294967295 does not exist", QUEUES),
    Offence("size 0", number(0, 0), "SET_VRING_NUM: ring 0: size 0, it must be 1 to 32768", SIZE),
    Offence("size 65536", number(0, 65536), "ring 0: size 65536, it must be 1 to 32768", SIZE),
    Offence("size 2^32 - 1", number(0, 2**32 - 1), "size 4294967295, it must be 1 to 32768", SIZE),
    Offence("size 255", number(1, 255), "ring 1: size 255, a split ring's must be a power of two", SIZE),
    Offence("base of ring 2", asks(Request.SET_VRING_BASE, RingState(2, 0)), "ring 2 does not exist", QUEUES),
    Offence(
        "base 65536", asks(Request.SET_VRING_BASE, RingState(0, 65536)), "SET_VRING_BASE: ring 0: base 65536"
    ),
    Offence("address of ring 2", asks(Request.SET_VRING_ADDR, ring_at(2)), "ring 2 does not exist", QUEUES),
    Offence("unknown address flags", address(flags=2), "SET_VRING_ADDR: ring 0: unknown flags 0x2"),
    Offence("logging", address(flags=1), "SET_VRING_ADDR: ring 0: logging was not offered"),
    Offence("table misaligned", address(descriptor=8), "descriptor table at 0x8 is not aligned to 16 bytes"),
    Offence(
        "available ring misaligned", address(available=1), "available ring at 0x1 is not aligned to 2 bytes"
    ),
    Offence("used ring misaligned", address(used=2), "used ring at 0x2 is not aligned to 4 bytes"),
    Offence(
        "table before memory", starts(descriptor=0), "descriptor table of 4096 bytes at user address 0x0"
    ),
    Offence(
        "table over the end", starts(descriptor=LAST - 4080), "descriptor table of 4096 bytes .* lies in none"
    ),
    Offence("available ring behind", starts(available=LAST), "available ring of 518 bytes .* lies in none"),
    Offence("used ring over the end", starts(used=LAST - 2048), "used ring of 2054 bytes .* lies in none"),
    Offence(
        "used ring wraps",
        starts(used=2**64 - 4),
        "used ring of 2054 bytes at user address 0xf+c lies in none",
    ),
    Offence(
        "kick of ring 255", asks(Request.SET_VRING_KICK, RingDescriptor(255), 1), "ring 255 does not", QUEUES
    ),
    Offence(
        "call of ring 2", asks(Request.SET_VRING_CALL, RingDescriptor(2), 1), "ring 2 does not exist", QUEUES
    ),
    Offence(
        "error of ring 2", asks(Request.SET_VRING_ERR, RingDescriptor(2), 1), "ring 2 does not exist", QUEUES
    ),
    Offence(
        "kick that cannot be used", kick_with(path_only), "SET_VRING_KICK: /dev/null: a file whose", HARMLESS
    ),
    Offence(
        "kick that cannot be awaited",
        kick_with(Rogue.memfd),
        "SET_VRING_KICK: its file descriptor can signal nothing",
    ),
    Offence(
        "enable ring 2", asks(Request.SET_VRING_ENABLE, RingState(2, 1)), "ring 2 does not exist", QUEUES
    ),
    Offence(
        "enable with 2", asks(Request.SET_VRING_ENABLE, RingState(0, 2)), "2 is neither enabled nor disabled"
    ),
    Offence(
        "a size while it runs",
        with_memory(
            lambda rogue: rogue.ring(0),
            lambda rogue: rogue.kick(0),
            number(0, 512),
        ),
        "SET_VRING_NUM: ring 0 runs: GET_VRING_BASE must stop it first",
    ),
    Offence("no bytes", shares(region(size=0)), "ADD_MEM_REG: the region of 0x0 bytes .* is empty"),
    Offence("region beyond its file", shares(region(size=4 * MIB)), "ends 0x400000 bytes into a file", SHARE),
    Offence(
        "region behind its file", shares(region(offset=2 * MIB)), "ends 0x400000 bytes into a file", SHARE
    ),
    Offence("region wraps", shares(region(guest=2**64 - MIB)), "overflows: its guest address ends beyond"),
    Offence(
        "user address wraps", shares(region(user=2**64 - MIB)), "overflows: its user address ends beyond"
    ),
    Offence("offset wraps", shares(region(offset=2**64 - MIB)), "overflows: its file offset ends beyond"),
    Offence("half of all memory", shares(region(size=2**63 - 1)), "ends 0x7f+ bytes into a file", SHARE),
    Offence(
        "a pipe",
        shares(region(size=4096), pipe),
        "memory cannot be mapped: a region's file is no shared memory",
        SHARE,
    ),
    Offence("a directory", shares(region(size=4096), directory), "ADD_MEM_REG: /: a file whose", HARMLESS),
    Offence(
        "a file not to be written", shares(region(), read_only), "cannot map .*: Permission denied", SHARE
    ),
    Offence(
        "overlap in the guest",
        with_memory(shares(region(guest=MIB, user=2**32))),
        "ADD_MEM_REG: the region .* overlaps the region .* in guest addresses",
    ),
    Offence(
        "overlap in the frontend",
        with_memory(shares(region(guest=2**32, user=257 * MIB))),
        "ADD_MEM_REG: the region .* overlaps the region .* in user addresses",
    ),
    Offence(
        "overlap in a table",
        asks(Request.SET_MEM_TABLE, MemoryTable((region().region, region().region)), 2),
        "SET_MEM_TABLE: the region .* overlaps the region .* in guest addresses",
    ),
    Offence(
        "memory that is not there", asks(Request.REM_MEM_REG, region()), "REM_MEM_REG: no region of 0x200000"
    ),
    Offence(
        "memory from under a ring",
        with_memory(
            lambda rogue: rogue.ring(0),
            lambda rogue: rogue.kick(0),
            asks(Request.REM_MEM_REG, region()),
        ),
        "REM_MEM_REG: ring 0: its descriptor table .* lies in none of the 0 memory regions",
    ),
    Offence(
        "another address",
        asks(Request.SET_CONFIG, Config(0, ConfigFlag.WRITABLE, bytes(6))),
        "SET_CONFIG: the configuration space is read-only",
    ),
    Offence(
        "unknown flags", asks(Request.SET_CONFIG, Config(0, 7, bytes(6))), "SET_CONFIG: unknown flags 0x7"
    ),
    Offence(
        "an MTU of 10",
        asks(Request.NET_SET_MTU, U64(10)),
        "NET_SET_MTU: MTU 10, it must be 68 to",
        "host_mtu=",
    ),
    Offence(
        "a group's address",
        asks(Request.SEND_RARP, Announcement(b"\1\0\0\0\0\0")),
        "SEND_RARP: 01:00:00:00:00:00 is a group's address",
    ),
]


@pytest.mark.parametrize("acknowledged", [True, False], ids=["refused", "ended"])
@pytest.mark.parametrize("offence", IMPOSSIBLE, ids=lambda offence: offence.name)
def test_what_cannot_be_followed(inhabited: House, offence: Offence, acknowledged: bool) -> None:
    mark = len(inhabited.backend.text())
    with inhabited.undisturbed():
        for _ in range(REPETITIONS):
            with inhabited.visitor():
                rogue = Rogue(inhabited.rogue, acknowledged)
                with rogue.resources:
                    if acknowledged:
                        with pytest.raises(BackendError, match="refused"):
                            offence.commit(rogue)
                        assert rogue.frontend.get_features() & FEATURES == FEATURES
                    else:
                        offence.commit(rogue)
                        rogue.frontend.expect_end()
    said = inhabited.last_complaints(mark)
    assert len(said) == REPETITIONS, said
    for line in said:
        assert re.search(f"^{'refused' if acknowledged else 'the session ended'}: .*{offence.words}", line), (
            line
        )
        assert re.search(f"; .*{offence.remedy}", line), line


def share_pages(rogue: Rogue, count: int) -> None:
    for number in range(count):
        page = region(number << 20, 4096, (number + 1) << 20)
        rogue.request(Request.ADD_MEM_REG, page, rogue.memfd(4096))


def test_a_frontend_that_uses_up_all_descriptors(tmp_path: Path) -> None:
    with house(tmp_path, wrapper=("prlimit", "--nofile=64:64", "--")) as small, small.undisturbed():
        for _ in range(REPETITIONS):
            rogue = Rogue(small.rogue, acknowledged=True)
            with small.visitor(), rogue.resources:
                with pytest.raises(BackendError, match="closed the connection"):
                    share_pages(rogue, 64)
                small.neighbour.check()
        said = small.last_complaints(0)
        assert len(said) == REPETITIONS
        for line in said:
            assert (
                "descriptors were lost: this process may not open any more; raise the limit: ulimit" in line
            )


def test_the_socket_serves_a_guest_after_all_that(inhabited: House) -> None:
    with inhabited.undisturbed(), inhabited.visitor(), FakeGuest(inhabited.rogue) as guest:
        assert guest.pair.exchange(FrameStream((60, 1514)), 1000).lost == 0

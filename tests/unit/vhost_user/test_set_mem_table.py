"""SET_MEM_TABLE."""

import struct

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import MessageFlag, Request
from guestwire.vhost_user.messages import Empty, Header, MemoryTable, Region
from unit.vhost_user.fakes import MEMORY, is_open

LOW = Region(guest_address=0, size=0x10000, user_address=0x1000_0000, mmap_offset=0)
HIGH = Region(guest_address=0x10000, size=0x10000, user_address=0x2000_0000, mmap_offset=0x123)


def table(*regions: Region) -> MemoryTable:
    return MemoryTable(regions)


def test_each_region_gets_its_descriptor(frontend, device):
    frontend.send(Request.SET_MEM_TABLE, table(LOW, HIGH), frontend.memfd(), frontend.memfd())
    assert [
        (region.guest_address, region.size, region.user_address, region.mmap_offset)
        for region in device.memory
    ] == [
        (0, 0x10000, 0x1000_0000, 0),
        (0x10000, 0x10000, 0x2000_0000, 0x123),
    ]
    assert all(is_open(region.fd) for region in device.memory)


def test_eight_regions_fit(frontend, device):
    regions = [Region(n << 16, 1 << 16, n << 16, 0) for n in range(8)]
    frontend.send(Request.SET_MEM_TABLE, table(*regions), *[frontend.memfd()] * 8)
    assert len(device.memory) == 8


def test_new_table_replaces_the_old_one(frontend, device):
    frontend.send(Request.SET_MEM_TABLE, table(LOW), frontend.memfd())
    replaced = device.memory[0].descriptor
    frontend.send(Request.SET_MEM_TABLE, table(HIGH), frontend.memfd())
    assert len(device.memory) == 1
    assert replaced.fileno() == -1


def test_empty_table_takes_the_memory_away(frontend, device):
    frontend.share_memory()
    frontend.send(Request.SET_MEM_TABLE, table())
    assert device.memory == ()


def test_room_for_more_regions_is_ignored(frontend, device):
    # User-Mode Linux sends room for two, whatever their number.
    body = table(LOW).encode() + HIGH.encode()
    header = Header(Request.SET_MEM_TABLE, MessageFlag(0), len(body)).encode()
    frontend.transmit(header + body, [frontend.memfd()])
    assert len(device.memory) == 1


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ([LOW, Region(0x10000, 0, 0x2000_0000, 0)], "is empty"),
        ([LOW, Region(0xFFFF, 0x10000, 0x2000_0000, 0)], "in guest addresses"),
        ([LOW, Region(0x10000, 0x10000, 0x1000_FFFF, 0)], "in user addresses"),
        ([LOW, Region(2**64 - 1, 0x10000, 0x2000_0000, 0)], "its guest address ends beyond"),
        ([LOW, Region(0x10000, 0x10000, 2**64 - 1, 0)], "its user address ends beyond"),
        ([LOW, Region(0x10000, 0x10000, 0x2000_0000, 2**63 - 1)], "its file offset ends beyond"),
    ],
)
def test_bad_regions_are_refused_and_the_old_table_stays(frontend, device, regions, reason):
    frontend.negotiate()
    frontend.share_memory()
    before = device.memory
    assert not frontend.acknowledged(
        Request.SET_MEM_TABLE, table(*regions), *[frontend.memfd()] * len(regions)
    )
    assert reason in str(frontend.refused[0])
    assert device.memory == before
    assert is_open(before[0].fd)


def test_regions_may_touch_the_end_of_the_addresses(frontend, device):
    last = Region(2**64 - 0x1000, 0x1000, 2**64 - 0x1000, 2**63 - 0x1000)
    frontend.send(Request.SET_MEM_TABLE, table(last), frontend.memfd())
    assert len(device.memory) == 1


def test_device_may_refuse(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    before = device.memory
    device.fail["set_memory"] = HostError("cannot map")
    assert not frontend.acknowledged(Request.SET_MEM_TABLE, table(LOW), frontend.memfd())
    del device.fail["set_memory"]
    assert frontend.session.backend.memory.regions == before


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_a_descriptor_for_each_region(frontend, device, count):
    with pytest.raises(FrontendError, match=f"{count} file descriptors came with it instead of 2"):
        frontend.send(Request.SET_MEM_TABLE, table(LOW, HIGH), *[frontend.memfd()] * count)
    assert device.calls == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "payload of 0 bytes, too short to tell the number of regions"),
        (bytes(7), "payload of 7 bytes"),
        (struct.pack("=II", 9, 0) + bytes(256), "9 regions, a table has at most 8"),
        (struct.pack("=II", 2, 0) + bytes(32), "payload of 40 bytes for 2 regions"),
        (struct.pack("=II", 1, 0) + bytes(33), "payload of 41 bytes for 1 regions"),
        (struct.pack("=II", 0xFFFFFFFF, 0), "4294967295 regions"),
    ],
)
def test_malformed(frontend, body, reason):
    header = Header(Request.SET_MEM_TABLE, MessageFlag(0), len(body)).encode()
    with pytest.raises(FrontendError, match=reason):
        frontend.transmit(header + body, [frontend.memfd()])


def test_rings_go_on_over_a_table_that_still_holds_them(frontend, device):
    frontend.run_ring()
    frontend.send(Request.SET_MEM_TABLE, table(MEMORY, LOW), frontend.memfd(), frontend.memfd())
    assert device.named("stop_ring") == []
    assert 0 in device.running


def test_table_must_hold_the_rings_that_run(frontend, device):
    frontend.run_ring()
    assert not frontend.acknowledged(Request.SET_MEM_TABLE, table(LOW), frontend.memfd())
    assert "ring 0: its descriptor table of 4096 bytes" in str(frontend.refused[0])
    assert 0 in device.running


def test_disabled_ring_stops_when_its_memory_goes(frontend, device):
    frontend.run_ring()
    frontend.enable(0, False)
    frontend.send(Request.SET_MEM_TABLE, table(LOW), frontend.memfd())
    assert device.running == {}


def test_payload_must_be_a_table(frontend):
    with pytest.raises(FrontendError, match="too short"):
        frontend.send(Request.SET_MEM_TABLE, Empty())

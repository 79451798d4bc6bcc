"""GET_MAX_MEM_SLOTS, ADD_MEM_REG and REM_MEM_REG."""

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.messages import MemoryTable, Region, SingleRegion
from guestwire.vhost_user.state import SPOKEN
from unit.vhost_user.fakes import MEMORY, is_open

DIMM = Region(guest_address=1 << 32, size=0x10000, user_address=1 << 40, mmap_offset=0)


def slot(number: int) -> SingleRegion:
    return SingleRegion(Region(number << 16, 1 << 16, number << 16, 0))


def test_as_many_slots_as_kvm_leaves(frontend):
    frontend.negotiate()
    assert frontend.get(Request.GET_MAX_MEM_SLOTS) == 509


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Request.GET_MAX_MEM_SLOTS, None),
        (Request.ADD_MEM_REG, SingleRegion(DIMM)),
        (Request.REM_MEM_REG, SingleRegion(DIMM)),
    ],
)
def test_must_be_negotiated(frontend, request_, payload):
    frontend.negotiate(protocol_features=SPOKEN & ~ProtocolFeature.CONFIGURE_MEM_SLOTS)
    descriptors = [frontend.memfd()] if request_ is Request.ADD_MEM_REG else []
    with pytest.raises(FrontendError, match="CONFIGURE_MEM_SLOTS was not negotiated"):
        frontend.send(request_, payload, *descriptors)


def test_add_and_remove(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    assert frontend.acknowledged(Request.ADD_MEM_REG, SingleRegion(DIMM), frontend.memfd())
    assert [region.guest_address for region in device.memory] == [MEMORY.guest_address, 1 << 32]
    removed = device.memory[1].descriptor
    assert is_open(removed.fileno())

    other_offset = Region(DIMM.guest_address, DIMM.size, DIMM.user_address, 0x5000)
    assert frontend.acknowledged(Request.REM_MEM_REG, SingleRegion(other_offset))
    assert [region.guest_address for region in device.memory] == [MEMORY.guest_address]
    assert removed.fileno() == -1


def test_a_region_that_is_added_for_each_queue_pair_is_removed_as_often(frontend, device):
    frontend.negotiate()
    descriptor = frontend.memfd()
    for _ in range(3):
        assert frontend.acknowledged(Request.ADD_MEM_REG, SingleRegion(DIMM), descriptor)
    assert [region.guest_address for region in device.memory] == [DIMM.guest_address]
    memory = device.memory
    for _ in range(2):
        assert frontend.acknowledged(Request.REM_MEM_REG, SingleRegion(DIMM))
        assert device.memory is memory
        assert is_open(memory[0].fd)
    assert frontend.acknowledged(Request.REM_MEM_REG, SingleRegion(DIMM))
    assert device.memory == ()
    assert not frontend.acknowledged(Request.REM_MEM_REG, SingleRegion(DIMM))


def test_the_same_place_in_another_file_is_refused(frontend, device):
    frontend.negotiate()
    assert frontend.acknowledged(Request.ADD_MEM_REG, SingleRegion(DIMM), frontend.memfd())
    assert not frontend.acknowledged(Request.ADD_MEM_REG, SingleRegion(DIMM), frontend.memfd())
    assert "overlaps" in str(frontend.refused[0])


def test_up_to_all_slots(frontend, device):
    frontend.negotiate()
    descriptor = frontend.memfd()
    for number in range(509):
        frontend.send(Request.ADD_MEM_REG, slot(number), descriptor)
    assert len(device.memory) == 509
    assert not frontend.acknowledged(Request.ADD_MEM_REG, slot(509), descriptor)
    assert "would be number 510, the most is 509" in str(frontend.refused[0])
    assert len(device.memory) == 509


def test_table_replaces_what_was_added(frontend, device):
    # Cloud Hypervisor sends the table first and adds to it later.
    frontend.negotiate()
    frontend.send(Request.ADD_MEM_REG, SingleRegion(DIMM), frontend.memfd())
    frontend.send(Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), frontend.memfd())
    assert [region.guest_address for region in device.memory] == [MEMORY.guest_address]


def test_ring_starts_when_its_memory_is_added(frontend, device):
    frontend.negotiate()
    frontend.set_up_ring(0)
    frontend.kick(0)
    assert device.running == {}
    frontend.send(Request.ADD_MEM_REG, SingleRegion(MEMORY), frontend.memfd())
    assert list(device.running) == [0]


def test_memory_of_a_running_ring_stays(frontend, device):
    frontend.run_ring(1)
    assert not frontend.acknowledged(Request.REM_MEM_REG, SingleRegion(MEMORY))
    assert str(frontend.refused[0]) == (
        "VHOST_USER_REM_MEM_REG: ring 1: its descriptor table of 4096 bytes at user address "
        "0x7f010000 lies in none of the 0 memory regions"
    )
    assert len(device.memory) == 1
    assert list(device.running) == [1]


@pytest.mark.parametrize(
    "other",
    [
        Region(MEMORY.guest_address + 1, MEMORY.size, MEMORY.user_address, 0),
        Region(MEMORY.guest_address, MEMORY.size - 1, MEMORY.user_address, 0),
        Region(MEMORY.guest_address, MEMORY.size, MEMORY.user_address + 1, 0),
    ],
)
def test_only_a_region_that_is_there_can_be_removed(frontend, device, other):
    frontend.negotiate()
    frontend.share_memory()
    assert not frontend.acknowledged(Request.REM_MEM_REG, SingleRegion(other))
    assert "is in the table of 1" in str(frontend.refused[0])


def test_stray_descriptor_of_a_removal_is_closed(frontend, device):
    # "If a file descriptor is passed, the back-end MUST close it without using it otherwise."
    frontend.negotiate()
    frontend.share_memory()
    assert frontend.acknowledged(Request.REM_MEM_REG, SingleRegion(MEMORY), frontend.memfd())
    assert device.memory == ()


@pytest.mark.parametrize(("request_", "most"), [(Request.ADD_MEM_REG, 1), (Request.REM_MEM_REG, 1)])
def test_too_many_descriptors(frontend, request_, most):
    frontend.negotiate()
    with pytest.raises(FrontendError, match=f"2 file descriptors came with it instead of {most}"):
        frontend.send(request_, SingleRegion(DIMM), frontend.memfd(), frontend.memfd())


def test_a_region_needs_its_descriptor(frontend):
    frontend.negotiate()
    with pytest.raises(FrontendError, match="0 file descriptors came with it instead of 1"):
        frontend.send(Request.ADD_MEM_REG, SingleRegion(DIMM))


def test_overlap_is_refused(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    inside = Region(MEMORY.guest_address + 0x1000, 0x1000, 1 << 45, 0)
    assert not frontend.acknowledged(Request.ADD_MEM_REG, SingleRegion(inside), frontend.memfd())
    assert "overlaps" in str(frontend.refused[0])
    assert len(device.memory) == 1


def test_device_may_refuse_and_the_descriptor_is_closed(frontend, device):
    frontend.negotiate()
    device.fail["set_memory"] = HostError("cannot map", "raise the limit")
    assert not frontend.acknowledged(Request.ADD_MEM_REG, SingleRegion(DIMM), frontend.memfd())
    del device.fail["set_memory"]
    assert len(frontend.session.backend.memory) == 0

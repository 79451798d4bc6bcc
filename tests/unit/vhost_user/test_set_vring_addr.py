"""SET_VRING_ADDR."""

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import U64, RingAddress, RingDescriptor, RingState
from guestwire.virtio.features import Feature
from unit.vhost_user.fakes import MEMORY, OFFERED

START = MEMORY.user_address
END = MEMORY.user_address + MEMORY.size
DESCRIPTOR, USED, AVAILABLE = START, START + 0x8000, START + 0x4000


def address(descriptor=DESCRIPTOR, used=USED, available=AVAILABLE, flags=0, log=0) -> RingAddress:
    return RingAddress(1, flags, descriptor, used, available, log)


def prepare(frontend, size=256):
    frontend.negotiate()
    frontend.share_memory()
    frontend.send(Request.SET_VRING_NUM, RingState(1, size))


def test_addresses_reach_the_device(frontend, device):
    prepare(frontend)
    frontend.send(Request.SET_VRING_ADDR, address())
    frontend.kick(1)
    ring = device.running[1]
    assert (ring.descriptor_address, ring.used_address, ring.available_address) == (
        DESCRIPTOR,
        USED,
        AVAILABLE,
    )
    assert ring.log_address is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"descriptor": DESCRIPTOR + 8}, "its descriptor table at 0x7f000008 is not aligned to 16"),
        ({"available": AVAILABLE + 1}, "its available ring at 0x7f004001 is not aligned to 2"),
        ({"used": USED + 2}, "its used ring at 0x7f008002 is not aligned to 4"),
    ],
)
def test_alignment(frontend, fields, reason):
    with pytest.raises(FrontendError, match=reason):
        frontend.send(Request.SET_VRING_ADDR, address(**fields))


@pytest.mark.parametrize(
    ("fields", "legal"),
    [
        ({"descriptor": END - 16 * 256}, True),
        ({"descriptor": END - 16 * 256 + 16}, False),
        ({"descriptor": START - 16}, False),
        ({"available": END - 6 - 2 * 256}, True),
        ({"available": END - 6 - 2 * 256 + 2}, False),
        ({"used": END - 8 - 8 * 256}, True),
        ({"used": END - 4 - 8 * 256}, False),
        ({"descriptor": 0}, False),
        ({"descriptor": 2**64 - 16}, False),
        ({"used": 2**64 - 4}, False),
    ],
)
def test_all_of_a_ring_must_lie_in_memory(frontend, device, fields, legal):
    prepare(frontend)
    frontend.send(Request.SET_VRING_ADDR, address(**fields))
    kick = frontend.eventfd()
    assert frontend.acknowledged(Request.SET_VRING_KICK, RingDescriptor(1), kick) == legal
    assert (1 in device.running) == legal
    if not legal:
        assert "lies in none of the 1 memory regions" in str(frontend.refused[0])
        frontend.send(Request.SET_VRING_ADDR, address())
        assert device.running == {}, "the kick that failed must come again"
        frontend.kick(1)
        assert 1 in device.running


def test_areas_may_not_span_regions(frontend, device):
    frontend.negotiate()
    frontend.send(Request.SET_VRING_NUM, RingState(1, 256))
    frontend.send(Request.SET_VRING_ADDR, address(descriptor=END - 0x800))
    frontend.share_memory()
    with pytest.raises(FrontendError):
        frontend.kick(1)


def test_repetition_while_the_ring_runs_is_nothing(frontend, device):
    prepare(frontend)
    frontend.send(Request.SET_VRING_ADDR, address())
    frontend.kick(1)
    frontend.enable(1)
    device.calls.clear()
    frontend.send(Request.SET_VRING_ADDR, address())
    assert device.calls == []


def test_running_ring_cannot_move(frontend, device):
    prepare(frontend)
    frontend.send(Request.SET_VRING_ADDR, address())
    frontend.kick(1)
    frontend.enable(1)
    assert not frontend.acknowledged(Request.SET_VRING_ADDR, address(descriptor=START + 0x10000))
    assert device.running[1].descriptor_address == DESCRIPTOR


def test_logging_must_have_been_offered(frontend):
    with pytest.raises(FrontendError, match="ring 1: logging was not offered"):
        frontend.send(Request.SET_VRING_ADDR, address(flags=1, log=0x1000))


def test_log_address_reaches_the_device(frontend, device):
    device.offered |= Feature.VHOST_F_LOG_ALL
    frontend.begin()
    prepare(frontend)
    frontend.send(Request.SET_VRING_ADDR, address(flags=1, log=0x1004))
    frontend.kick(1)
    assert device.running[1].log_address == 0x1004


def test_log_address_without_the_flag_means_nothing(frontend, device):
    # User-Mode Linux sends all ones.
    prepare(frontend)
    frontend.send(Request.SET_VRING_ADDR, address(log=2**64 - 1))
    frontend.kick(1)
    assert device.running[1].log_address is None


def test_unknown_flags(frontend):
    with pytest.raises(FrontendError, match="ring 1: unknown flags 0x80000002"):
        frontend.send(Request.SET_VRING_ADDR, address(flags=0x80000002))


def test_packed_ring_has_small_event_areas(frontend, device):
    device.offered |= Feature.VIRTIO_F_RING_PACKED
    frontend.begin()
    frontend.send(Request.SET_FEATURES, U64(OFFERED | Feature.VIRTIO_F_RING_PACKED))
    with pytest.raises(FrontendError, match="not aligned to 4"):
        frontend.send(Request.SET_VRING_ADDR, address(available=AVAILABLE + 2))


def test_ring_must_exist(frontend):
    with pytest.raises(FrontendError, match="ring 4 does not exist"):
        frontend.send(Request.SET_VRING_ADDR, RingAddress(4, 0, 0, 0, 0, 0))

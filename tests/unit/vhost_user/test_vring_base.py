"""SET_VRING_BASE and GET_VRING_BASE."""

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import U64, RingDescriptor, RingState
from guestwire.virtio.features import Feature
from unit.vhost_user.fakes import OFFERED, is_open


def test_base_reaches_the_device(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    frontend.set_up_ring(0, base=0xFFFF)
    frontend.kick(0)
    assert device.running[0].base == 0xFFFF


def test_split_base_has_sixteen_bits(frontend):
    with pytest.raises(FrontendError, match="ring 0: base 65536, a split ring's index has 16 bits"):
        frontend.send(Request.SET_VRING_BASE, RingState(0, 0x10000))


def test_packed_base_holds_two_indexes(frontend, device):
    device.offered |= Feature.VIRTIO_F_RING_PACKED
    frontend.begin()
    frontend.send(Request.SET_FEATURES, U64(OFFERED | Feature.VIRTIO_F_RING_PACKED))
    frontend.send(Request.SET_VRING_BASE, RingState(0, 0x8001_8001))
    assert frontend.send(Request.GET_VRING_BASE, RingState(0, 0)) == RingState(0, 0x8001_8001)


@pytest.mark.parametrize(("before", "after", "first"), [(True, False, 0), (False, True, 0x8000_8000)])
def test_where_a_ring_of_the_other_kind_stopped_says_nothing(frontend, device, before, after, first):
    device.offered |= Feature.VIRTIO_F_RING_PACKED
    kinds = {False: OFFERED, True: OFFERED | Feature.VIRTIO_F_RING_PACKED}
    frontend.begin()
    frontend.send(Request.SET_FEATURES, U64(kinds[before]))
    frontend.send(Request.SET_VRING_BASE, RingState(0, 3))
    frontend.send(Request.SET_FEATURES, U64(kinds[after]))
    assert frontend.send(Request.GET_VRING_BASE, RingState(0, 0)) == RingState(0, first)


def test_illegal_while_the_ring_runs(frontend, device):
    frontend.run_ring(0)
    assert not frontend.acknowledged(Request.SET_VRING_BASE, RingState(0, 1))
    assert device.running[0].base == 0


def test_get_stops_the_ring_and_tells_where(frontend, device):
    frontend.run_ring(3)
    device.consumed = 300
    assert frontend.send(Request.GET_VRING_BASE, RingState(3, 0)) == RingState(3, 300)
    assert device.running == {}


def test_get_of_a_ring_that_never_ran(frontend):
    frontend.send(Request.SET_VRING_BASE, RingState(2, 41))
    assert frontend.send(Request.GET_VRING_BASE, RingState(2, 0)) == RingState(2, 41)


def test_get_again_tells_the_same(frontend, device):
    frontend.run_ring(0)
    device.consumed = 5
    for _ in range(2):
        assert frontend.send(Request.GET_VRING_BASE, RingState(0, 0)) == RingState(0, 5)
    assert device.named("stop_ring") == [[0]]


def test_kick_is_forgotten_call_and_error_are_kept(frontend, device):
    frontend.run_ring(0)
    frontend.send(Request.SET_VRING_CALL, RingDescriptor(0), frontend.eventfd())
    frontend.send(Request.SET_VRING_ERR, RingDescriptor(0), frontend.eventfd())
    ring = frontend.session.backend.rings[0]
    kick, call, error = (each.fileno() for each in (ring.kick, ring.call, ring.error))
    frontend.send(Request.GET_VRING_BASE, RingState(0, 0))
    assert not is_open(kick)
    assert is_open(call)
    assert is_open(error)


def test_another_kick_goes_on_where_it_stopped(frontend, device):
    frontend.run_ring(0)
    device.consumed = 9
    frontend.send(Request.GET_VRING_BASE, RingState(0, 0))
    frontend.kick(0)
    assert device.running[0].base == 9
    assert device.running[0].enabled


@pytest.mark.parametrize("request_", [Request.SET_VRING_BASE, Request.GET_VRING_BASE])
def test_ring_must_exist(frontend, request_):
    with pytest.raises(FrontendError, match="ring 4 does not exist"):
        frontend.send(request_, RingState(4, 0))


def test_device_that_cannot_stop_a_ring_ends_the_session(frontend, device):
    frontend.run_ring(0)
    device.fail["stop_ring"] = HostError("stuck")
    with pytest.raises(HostError):
        frontend.send(Request.GET_VRING_BASE, RingState(0, 0))
    assert device.named("start_ring") == [[0, device.named("start_ring")[0][1]]]

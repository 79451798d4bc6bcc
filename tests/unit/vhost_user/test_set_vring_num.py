"""SET_VRING_NUM."""

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import U64, RingState
from guestwire.virtio.features import Feature
from unit.vhost_user.fakes import OFFERED


@pytest.mark.parametrize("size", [1, 2, 256, 1024])
def test_size_reaches_the_device(frontend, device, size):
    frontend.negotiate()
    frontend.share_memory()
    frontend.set_up_ring(0, size)
    frontend.kick(0)
    assert device.running[0].size == size


def test_largest(frontend):
    frontend.send(Request.SET_VRING_NUM, RingState(0, 32768))


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "size 0, it must be 1 to 32768"),
        (65536, "size 65536, it must be 1 to 32768"),
        (2**32 - 1, "size 4294967295, it must be 1 to 32768"),
        (3, "size 3, a split ring's must be a power of two"),
        (32767, "size 32767, a split ring's must be a power of two"),
    ],
)
def test_bad_sizes(frontend, size, reason):
    with pytest.raises(FrontendError) as caught:
        frontend.send(Request.SET_VRING_NUM, RingState(3, size))
    assert str(caught.value) == f"VHOST_USER_SET_VRING_NUM: ring 3: {reason}"
    assert "queue_size" in caught.value.remedy


def test_packed_ring_may_have_any_size(frontend, device):
    device.offered |= Feature.VIRTIO_F_RING_PACKED
    frontend.begin()
    frontend.send(Request.SET_FEATURES, U64(OFFERED | Feature.VIRTIO_F_RING_PACKED))
    frontend.send(Request.SET_VRING_NUM, RingState(0, 3))


@pytest.mark.parametrize("index", [4, 255, 2**32 - 1])
def test_ring_must_exist(frontend, index):
    with pytest.raises(FrontendError) as caught:
        frontend.send(Request.SET_VRING_NUM, RingState(index, 256))
    assert str(caught.value) == (f"VHOST_USER_SET_VRING_NUM: ring {index} does not exist, there are 4")
    assert "ask for no more than 2 in the frontend" in caught.value.remedy


def test_illegal_while_the_ring_runs(frontend, device):
    frontend.run_ring(0)
    assert not frontend.acknowledged(Request.SET_VRING_NUM, RingState(0, 128))
    assert "GET_VRING_BASE must stop it first" in str(frontend.refused[0])
    assert device.running[0].size == 256


def test_stops_a_disabled_ring(frontend, device):
    # User-Mode Linux sets up anew what it has only disabled.
    frontend.run_ring(0)
    frontend.enable(0, False)
    device.calls.clear()
    frontend.send(Request.SET_VRING_NUM, RingState(0, 128))
    assert device.calls == [("stop_ring", 0)]
    frontend.kick(0)
    assert device.running[0].size == 128

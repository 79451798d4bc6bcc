"""SET_VRING_ENABLE."""

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import RingState
from guestwire.virtio.features import Feature


def test_running_ring_is_told_of_each_change(frontend, device):
    frontend.run_ring(0)
    device.calls.clear()
    for state in (0, 0, 1, 1):
        frontend.send(Request.SET_VRING_ENABLE, RingState(0, state))
    assert device.calls == [("enable_ring", 0, False), ("enable_ring", 0, True)]


def test_state_is_kept_while_the_ring_is_stopped(frontend, device):
    frontend.run_ring(0)
    frontend.send(Request.GET_VRING_BASE, RingState(0, 0))
    frontend.enable(0, False)
    frontend.kick(0)
    assert not device.running[0].enabled


@pytest.mark.parametrize("state", [2, 2**32 - 1])
def test_nothing_between_enabled_and_disabled(frontend, state):
    with pytest.raises(FrontendError, match=f"ring 1: {state} is neither enabled nor disabled"):
        frontend.send(Request.SET_VRING_ENABLE, RingState(1, state))


def test_protocol_features_must_have_been_offered(frontend, device):
    device.offered = int(Feature.VIRTIO_F_VERSION_1)
    frontend.begin()
    with pytest.raises(FrontendError, match="VHOST_USER_F_PROTOCOL_FEATURES was not offered"):
        frontend.enable(0)


def test_ring_must_exist(frontend):
    with pytest.raises(FrontendError, match="ring 4 does not exist"):
        frontend.enable(4)

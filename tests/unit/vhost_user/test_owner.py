"""SET_OWNER, RESET_OWNER and RESET_DEVICE."""

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.messages import RingState
from guestwire.vhost_user.state import SPOKEN


def test_owner_may_be_set_again_and_again(frontend, device):
    for _ in range(3):
        assert frontend.send(Request.SET_OWNER) is None
    assert device.calls == []


def test_reset_owner_disables_every_ring(frontend, device):
    frontend.run_ring(0)
    frontend.set_up_ring(1)
    frontend.enable(1)
    device.calls.clear()
    frontend.send(Request.RESET_OWNER)
    assert device.calls == [("enable_ring", 0, False)]
    frontend.kick(1)
    assert not device.running[1].enabled


def test_reset_device_begins_anew_but_keeps_the_memory(frontend, device):
    frontend.run_ring(2)
    device.consumed = 7
    device.calls.clear()
    frontend.send(Request.RESET_DEVICE)
    assert device.calls == [("stop_ring", 2), ("reset",)]
    assert len(frontend.session.backend.memory) == 1
    assert frontend.session.backend.features is None

    frontend.kick(2)
    assert device.running == {}, "the ring must be set up again"
    frontend.negotiate()
    frontend.set_up_ring(2)
    assert not device.running[2].enabled


def test_where_a_ring_stopped_is_known_after_a_reset(frontend, device):
    frontend.run_ring(2)
    device.consumed = 7
    frontend.send(Request.RESET_DEVICE)
    assert frontend.send(Request.GET_VRING_BASE, RingState(2, 0)) == RingState(2, 7)


def test_reset_device_must_have_been_offered(frontend, device):
    device.protocol = int(SPOKEN & ~ProtocolFeature.RESET_DEVICE)
    frontend.begin()
    with pytest.raises(FrontendError, match="VHOST_USER_PROTOCOL_F_RESET_DEVICE was not offered"):
        frontend.send(Request.RESET_DEVICE)

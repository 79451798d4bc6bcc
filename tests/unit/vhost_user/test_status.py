"""GET_STATUS and SET_STATUS."""

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import U64
from guestwire.vhost_user.state import SPOKEN
from guestwire.virtio.features import DeviceStatus

READY = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK


def test_status_is_kept_and_passed_on(frontend, device):
    frontend.negotiate(protocol_features=SPOKEN)
    assert frontend.get(Request.GET_STATUS) == 0
    frontend.send(Request.SET_STATUS, U64(READY))
    assert frontend.get(Request.GET_STATUS) == READY
    assert device.calls[-1] == ("set_status", READY)


@pytest.mark.parametrize("request_", [Request.GET_STATUS, Request.SET_STATUS])
def test_must_be_negotiated(frontend, request_):
    frontend.negotiate()
    with pytest.raises(FrontendError, match="VHOST_USER_PROTOCOL_F_STATUS was not negotiated"):
        frontend.send(request_, U64(1) if request_ is Request.SET_STATUS else None)


def test_rings_wait_for_driver_ok(frontend, device):
    frontend.negotiate(protocol_features=SPOKEN)
    frontend.share_memory()
    frontend.set_up_ring(0)
    frontend.kick(0)
    frontend.send(Request.SET_STATUS, U64(READY))
    assert device.running == {}
    frontend.send(Request.SET_STATUS, U64(READY | DeviceStatus.DRIVER_OK))
    assert list(device.running) == [0]


def test_zero_resets(frontend, device):
    frontend.negotiate(protocol_features=SPOKEN)
    frontend.share_memory()
    frontend.set_up_ring(0)
    frontend.kick(0)
    frontend.send(Request.SET_STATUS, U64(READY | DeviceStatus.DRIVER_OK))
    device.calls.clear()
    frontend.send(Request.SET_STATUS, U64(0))
    assert device.calls == [("stop_ring", 0), ("reset",)]
    assert frontend.get(Request.GET_STATUS) == 0
    assert len(device.memory) == 1


def test_has_eight_bits(frontend):
    frontend.negotiate(protocol_features=SPOKEN)
    assert not frontend.acknowledged(Request.SET_STATUS, U64(0x100))
    assert str(frontend.refused[0]) == "VHOST_USER_SET_STATUS: status 0x100, it has 8 bits"

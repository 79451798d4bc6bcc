"""NET_SET_MTU."""

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.messages import U64
from guestwire.vhost_user.state import SPOKEN


@pytest.mark.parametrize("mtu", [68, 1500, 65535])
def test_reaches_the_device(frontend, device, mtu):
    # QEMU sends it before SET_FEATURES.
    frontend.send(Request.NET_SET_MTU, U64(mtu))
    assert device.calls == [("set_mtu", mtu)]


@pytest.mark.parametrize("mtu", [0, 67, 65536, 2**64 - 1])
def test_bad_values(frontend, device, mtu):
    with pytest.raises(FrontendError) as caught:
        frontend.send(Request.NET_SET_MTU, U64(mtu))
    assert str(caught.value) == (f"VHOST_USER_NET_SET_MTU: MTU {mtu}, it must be 68 to 65535")
    assert "host_mtu=" in caught.value.remedy
    assert device.calls == []


def test_device_may_refuse(frontend, device):
    frontend.negotiate()
    device.fail["set_mtu"] = HostError("too large")
    assert not frontend.acknowledged(Request.NET_SET_MTU, U64(9000))


def test_must_have_been_offered(frontend, device):
    device.protocol = int(SPOKEN & ~ProtocolFeature.MTU)
    frontend.begin()
    with pytest.raises(FrontendError, match="VHOST_USER_PROTOCOL_F_MTU was not offered"):
        frontend.send(Request.NET_SET_MTU, U64(1500))

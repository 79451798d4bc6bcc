"""GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES, and VHOST_USER_PROTOCOL_F_REPLY_ACK."""

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.messages import U64, encode_request
from guestwire.vhost_user.state import SPOKEN
from guestwire.virtio.features import Feature
from unit.vhost_user.fakes import OFFERED


def test_offer_is_what_device_and_session_both_know(frontend, device):
    assert device.protocol & ProtocolFeature.LOG_SHMFD
    assert frontend.get(Request.GET_PROTOCOL_FEATURES) == SPOKEN


def test_they_are_negotiated_before_features(frontend):
    wanted = ProtocolFeature.MQ | ProtocolFeature.CONFIG
    frontend.send(Request.SET_PROTOCOL_FEATURES, U64(wanted))
    assert frontend.session.backend.protocol_features == wanted
    assert frontend.session.backend.features is None


@pytest.mark.parametrize("request_", [Request.GET_PROTOCOL_FEATURES, Request.SET_PROTOCOL_FEATURES])
def test_illegal_unless_offered(frontend, device, request_):
    device.offered = int(Feature.VIRTIO_F_VERSION_1)
    frontend.begin()
    payload = U64(0) if request_ is Request.SET_PROTOCOL_FEATURES else None
    with pytest.raises(FrontendError) as caught:
        frontend.send(request_, payload)
    assert str(caught.value) == (
        f"VHOST_USER_{request_.name}: it is not legal: VHOST_USER_F_PROTOCOL_FEATURES was not offered"
    )


def test_never_offered_bits(frontend):
    with pytest.raises(FrontendError, match=r"never offered: LOG_SHMFD, INFLIGHT_SHMFD, bit 40"):
        frontend.send(
            Request.SET_PROTOCOL_FEATURES,
            U64(ProtocolFeature.LOG_SHMFD | ProtocolFeature.INFLIGHT_SHMFD | 1 << 40),
        )


def test_the_request_that_negotiates_acknowledgements_is_acknowledged(frontend):
    # User-Mode Linux waits for this one.
    assert frontend.acknowledged(
        Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG)
    )


def test_no_acknowledgement_unless_negotiated(frontend):
    assert frontend.send(Request.SET_FEATURES, U64(OFFERED), need_reply=True) is None


def test_no_acknowledgement_unless_wanted(frontend):
    frontend.negotiate()
    assert frontend.send(Request.SET_FEATURES, U64(OFFERED)) is None


def test_own_reply_serves_as_acknowledgement(frontend):
    frontend.negotiate()
    reply = frontend.transmit(encode_request(Request.GET_FEATURES, need_reply=True))
    assert reply == frontend.transmit(encode_request(Request.GET_FEATURES))


def test_refusal_by_the_device_is_reported_and_survived(frontend, device):
    frontend.negotiate()
    device.fail["set_mtu"] = HostError("the interface has no such MTU", "ip link set ...")
    assert not frontend.acknowledged(Request.NET_SET_MTU, U64(9000))
    assert frontend.refused == [device.fail["set_mtu"]]
    del device.fail["set_mtu"]
    assert frontend.acknowledged(Request.NET_SET_MTU, U64(9000))


def test_refusal_by_the_device_ends_the_session_where_nobody_would_know(frontend, device):
    frontend.negotiate()
    device.fail["set_mtu"] = HostError("the interface has no such MTU")
    with pytest.raises(HostError):
        frontend.send(Request.NET_SET_MTU, U64(9000))
    assert frontend.refused == []

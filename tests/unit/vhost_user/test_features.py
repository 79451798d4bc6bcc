"""GET_FEATURES and SET_FEATURES."""

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import U64
from guestwire.virtio.features import Feature
from unit.vhost_user.fakes import OFFERED


def test_offer_is_the_devices(frontend):
    assert frontend.get(Request.GET_FEATURES) == OFFERED


def test_accepted_features_reach_the_device(frontend, device):
    accepted = Feature.VIRTIO_F_VERSION_1 | Feature.VHOST_USER_F_PROTOCOL_FEATURES
    assert frontend.send(Request.SET_FEATURES, U64(accepted)) is None
    assert device.calls == [("set_features", accepted)]
    assert frontend.session.backend.features == accepted


def test_never_offered_bits_end_the_session(frontend, device):
    with pytest.raises(FrontendError) as caught:
        frontend.send(
            Request.SET_FEATURES,
            U64(OFFERED | Feature.VIRTIO_F_RING_PACKED | Feature.VIRTIO_NET_F_GUEST_TSO4 | 1 << 45),
        )
    assert str(caught.value) == (
        "VHOST_USER_SET_FEATURES: features that were never offered: "
        "VIRTIO_NET_F_GUEST_TSO4, VIRTIO_F_RING_PACKED, bit 45"
    )
    assert "switch them off" in caught.value.remedy
    assert device.calls == []


def test_never_offered_bits_are_refused_where_a_reply_is_awaited(frontend, device):
    frontend.negotiate()
    device.calls.clear()
    assert not frontend.acknowledged(Request.SET_FEATURES, U64(1 << 63))
    assert [type(error) for error in frontend.refused] == [FrontendError]
    assert device.calls == []
    assert frontend.session.backend.features == OFFERED


def test_device_may_refuse(frontend, device):
    device.fail["set_features"] = HostError("no")
    with pytest.raises(HostError):
        frontend.send(Request.SET_FEATURES, U64(OFFERED))
    assert frontend.session.backend.features is None


def test_repeating_them_while_a_ring_runs_changes_nothing(frontend, device):
    # QEMU does so for every queue pair after the first one.
    frontend.run_ring()
    device.calls.clear()
    frontend.send(Request.SET_FEATURES, U64(OFFERED))
    assert device.calls == []


def test_they_may_not_change_while_a_ring_runs(frontend, device):
    frontend.run_ring()
    assert not frontend.acknowledged(Request.SET_FEATURES, U64(OFFERED & ~Feature.VIRTIO_NET_F_MRG_RXBUF))
    assert "ring 0 runs: GET_VRING_BASE must stop it first" in str(frontend.refused[0])
    assert frontend.session.backend.features == OFFERED
    assert 0 in device.running


def test_logging_may_be_switched_while_a_ring_runs(frontend, device):
    device.offered |= Feature.VHOST_F_LOG_ALL
    frontend.begin()
    frontend.run_ring()
    frontend.send(Request.SET_FEATURES, U64(OFFERED | Feature.VHOST_F_LOG_ALL))
    assert device.calls[-1] == ("set_features", OFFERED | Feature.VHOST_F_LOG_ALL)
    assert 0 in device.running


def test_change_stops_a_disabled_ring(frontend, device):
    frontend.run_ring()
    frontend.enable(0, False)
    frontend.send(Request.SET_FEATURES, U64(OFFERED & ~Feature.VIRTIO_NET_F_MRG_RXBUF))
    assert device.running == {}


def test_without_protocol_features_rings_are_enabled(frontend, device):
    frontend.send(Request.SET_FEATURES, U64(Feature.VIRTIO_F_VERSION_1))
    frontend.share_memory()
    frontend.set_up_ring(0)
    frontend.kick(0)
    assert device.running[0].enabled

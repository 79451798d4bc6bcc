"""The tables of the protocol agree with each other."""

from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.messages import FORMATS, RingState
from guestwire.vhost_user.session import Session
from guestwire.vhost_user.state import RULES, SPOKEN


def test_every_request_has_a_shape_a_rule_and_a_meaning(device):
    session = Session(device)
    assert FORMATS.keys() == RULES.keys() == session.backend._methods.keys()
    session.close()


def test_rules_depend_on_what_is_spoken_only():
    for rule in RULES.values():
        assert rule.offered in SPOKEN
        assert rule.negotiated in SPOKEN


def test_rules_about_rings_belong_to_requests_that_name_one():
    for request, rule in RULES.items():
        if rule.ring_stopped:
            assert FORMATS[request].payload is RingState


def test_nothing_is_spoken_that_is_not_there():
    for missing in ("LOG_SHMFD", "INFLIGHT_SHMFD", "PAGEFAULT", "DEVICE_STATE", "XEN_MMAP"):
        assert ProtocolFeature[missing] not in SPOKEN
    for request in (Request.SET_LOG_BASE, Request.POSTCOPY_LISTEN, Request.IOTLB_MSG):
        assert request not in FORMATS

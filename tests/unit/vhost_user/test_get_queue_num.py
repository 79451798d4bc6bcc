"""GET_QUEUE_NUM."""

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.state import SPOKEN


def test_counts_rings_and_needs_no_negotiation(frontend, device):
    # "Only when VHOST_USER_PROTOCOL_F_MQ is set in queried protocol features."
    assert frontend.get(Request.GET_QUEUE_NUM) == device.ring_count() == 4


def test_must_have_been_offered(frontend, device):
    device.protocol = int(SPOKEN & ~ProtocolFeature.MQ)
    frontend.begin()
    with pytest.raises(FrontendError, match="VHOST_USER_PROTOCOL_F_MQ was not offered"):
        frontend.get(Request.GET_QUEUE_NUM)

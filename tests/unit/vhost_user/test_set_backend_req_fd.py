"""SET_BACKEND_REQ_FD."""

import os

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import ProtocolFeature, Request
from guestwire.vhost_user.messages import Empty
from guestwire.vhost_user.state import SPOKEN
from unit.vhost_user.fakes import is_open


def test_is_kept_and_does_not_block(frontend):
    frontend.negotiate()
    assert frontend.acknowledged(Request.SET_BACKEND_REQ_FD, Empty(), frontend.eventfd())
    channel = frontend.session.backend.channel.fileno()
    assert is_open(channel)
    assert not os.get_blocking(channel)


def test_another_one_replaces_it(frontend):
    frontend.negotiate()
    frontend.send(Request.SET_BACKEND_REQ_FD, Empty(), frontend.eventfd())
    before = frontend.session.backend.channel
    frontend.send(Request.SET_BACKEND_REQ_FD, Empty(), frontend.eventfd())
    assert before.fileno() == -1
    assert is_open(frontend.session.backend.channel.fileno())


@pytest.mark.parametrize("count", [0, 2])
def test_takes_one_descriptor(frontend, count):
    frontend.negotiate()
    with pytest.raises(FrontendError, match=f"{count} file descriptors came with it instead of 1"):
        frontend.send(Request.SET_BACKEND_REQ_FD, Empty(), *[frontend.eventfd() for _ in range(count)])


def test_must_have_been_offered(frontend, device):
    device.protocol = int(SPOKEN & ~ProtocolFeature.BACKEND_REQ)
    frontend.begin()
    with pytest.raises(FrontendError, match="VHOST_USER_PROTOCOL_F_BACKEND_REQ was not offered"):
        frontend.send(Request.SET_BACKEND_REQ_FD, Empty(), frontend.eventfd())

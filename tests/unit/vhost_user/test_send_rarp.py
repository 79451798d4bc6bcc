"""SEND_RARP."""

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import MessageFlag, ProtocolFeature, Request
from guestwire.vhost_user.messages import Announcement, Header
from guestwire.vhost_user.state import SPOKEN

MAC = bytes.fromhex("525400123456")


def test_reaches_the_device(frontend, device):
    frontend.send(Request.SEND_RARP, Announcement(MAC))
    assert device.calls == [("announce", MAC)]


def test_two_more_bytes_mean_nothing(frontend, device):
    frontend.transmit(Header(Request.SEND_RARP, MessageFlag(0), 8).encode() + MAC + b"\xff\xff")
    assert device.calls == [("announce", MAC)]


def test_group_address(frontend, device):
    with pytest.raises(FrontendError, match="01:00:5e:00:00:01 is a group's address"):
        frontend.send(Request.SEND_RARP, Announcement(bytes.fromhex("01005e000001")))
    assert device.calls == []


def test_must_have_been_offered(frontend, device):
    device.protocol = int(SPOKEN & ~ProtocolFeature.RARP)
    frontend.begin()
    with pytest.raises(FrontendError, match="VHOST_USER_PROTOCOL_F_RARP was not offered"):
        frontend.send(Request.SEND_RARP, Announcement(MAC))

"""GET_CONFIG and SET_CONFIG, and the message that says that the configuration has changed."""

import os
import struct

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import (
    HEADER_SIZE,
    BackendRequest,
    ConfigFlag,
    MessageFlag,
    ProtocolFeature,
    Request,
)
from guestwire.vhost_user.messages import Config, Empty, Header
from guestwire.vhost_user.state import SPOKEN

MAC = bytes.fromhex("525400123456")


def test_get(frontend):
    frontend.negotiate()
    reply = frontend.send(Request.GET_CONFIG, Config(0, 0, bytes(12)))
    assert reply == Config(0, 0, MAC + struct.pack("<HHH", 1, 1, 1500))


def test_get_a_part(frontend):
    frontend.negotiate()
    assert frontend.send(Request.GET_CONFIG, Config(10, 0, bytes(2))) == Config(
        10, 0, struct.pack("<H", 1500)
    )


def test_get_the_whole_space(frontend):
    frontend.negotiate()
    reply = frontend.send(Request.GET_CONFIG, Config(0, 0, bytes(256)))
    assert reply.data == (MAC + struct.pack("<HHH", 1, 1, 1500)).ljust(256, b"\0")


def test_failure_is_answered_without_payload(frontend, device):
    frontend.negotiate()
    device.fail["read_config"] = HostError("no")
    assert frontend.send(Request.GET_CONFIG, Config(0, 0, bytes(12))) == Empty()
    assert frontend.refused == [device.fail["read_config"]]


@pytest.mark.parametrize("flag", ConfigFlag)
def test_set(frontend, device, flag):
    frontend.negotiate()
    assert frontend.acknowledged(Request.SET_CONFIG, Config(6, flag, b"\1\0"))
    assert device.calls[-1] == ("write_config", 6, b"\1\0", flag)


def test_set_may_be_refused(frontend, device):
    frontend.negotiate()
    device.fail["write_config"] = FrontendError("the field is read-only")
    assert not frontend.acknowledged(Request.SET_CONFIG, Config(0, 0, MAC))
    assert str(frontend.refused[0]) == "VHOST_USER_SET_CONFIG: the field is read-only"


def test_unknown_flags(frontend):
    frontend.negotiate()
    with pytest.raises(FrontendError, match="unknown flags 0x2"):
        frontend.send(Request.SET_CONFIG, Config(0, 2, MAC))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (bytes(11), "payload of 11 bytes, its head alone has 12"),
        (struct.pack("=III", 0, 5, 0) + bytes(4), "5 bytes of configuration announced, 4 sent"),
        (struct.pack("=III", 253, 4, 0) + bytes(4), "bytes 253 to 257 of a configuration space"),
        (struct.pack("=III", 2**32 - 1, 1, 0) + bytes(1), "bytes 4294967295 to 4294967296"),
    ],
)
@pytest.mark.parametrize("request_", [Request.GET_CONFIG, Request.SET_CONFIG])
def test_malformed(frontend, request_, body, reason):
    frontend.negotiate()
    with pytest.raises(FrontendError, match=reason):
        frontend.transmit(Header(request_, MessageFlag(0), len(body)).encode() + body)


@pytest.mark.parametrize("request_", [Request.GET_CONFIG, Request.SET_CONFIG])
def test_must_be_negotiated(frontend, request_):
    frontend.negotiate(protocol_features=SPOKEN & ~ProtocolFeature.CONFIG)
    with pytest.raises(FrontendError, match="VHOST_USER_PROTOCOL_F_CONFIG was not negotiated"):
        frontend.send(request_, Config(0, 0, b"\0"))


def test_change_is_announced_where_the_frontend_listens(frontend):
    frontend.negotiate()
    assert frontend.session.config_change() is None
    reading, writing = os.pipe()
    frontend.own(reading)
    frontend.own(writing)
    frontend.send(Request.SET_BACKEND_REQ_FD, Empty(), writing)
    descriptor, message = frontend.session.config_change()
    os.write(descriptor, message)
    header = Header.decode(os.read(reading, 100))
    assert len(message) == HEADER_SIZE
    assert header == Header(BackendRequest.CONFIG_CHANGE_MSG, MessageFlag(0), 0)


def test_change_is_not_announced_unless_negotiated(frontend):
    frontend.negotiate(protocol_features=SPOKEN & ~ProtocolFeature.CONFIG)
    frontend.send(Request.SET_BACKEND_REQ_FD, Empty(), frontend.eventfd())
    assert frontend.session.config_change() is None

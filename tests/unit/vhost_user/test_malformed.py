"""What is no message at all, and messages that have not their shape."""

import os
import struct

import pytest

from guestwire.errors import FrontendError
from guestwire.vhost_user.constants import MessageFlag, Request
from guestwire.vhost_user.messages import FORMATS, Empty, Header, encode_request

FIXED_SIZES = {
    request: size
    for request, size in {
        **dict.fromkeys(FORMATS, 8),
        **{request: 0 for request, shape in FORMATS.items() if shape.payload is Empty},
        Request.SET_VRING_ADDR: 40,
        Request.ADD_MEM_REG: 40,
        Request.REM_MEM_REG: 40,
    }.items()
    if request not in (Request.SET_MEM_TABLE, Request.GET_CONFIG, Request.SET_CONFIG)
}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((1, 0, 0), "VHOST_USER_GET_FEATURES: version 0, only version 1 exists"),
        ((1, 2, 0), "version 2, only version 1 exists"),
        ((1, 0x11, 0), "unknown flags 0x10"),
        ((1, 0x80000001, 0), "unknown flags 0x80000000"),
        ((5, 1, 269), "VHOST_USER_SET_MEM_TABLE: payload of 269 bytes, the largest has 268"),
        ((5, 1, 2**32 - 1), "payload of 4294967295 bytes"),
        ((77, 1, 4096), "request 77: payload of 4096 bytes"),
    ],
)
def test_bad_headers_end_the_session_at_once(frontend, header, reason):
    with pytest.raises(FrontendError, match=reason) as caught:
        frontend.transmit(struct.pack("=III", *header))
    assert "fault is the frontend's" in caught.value.remedy


@pytest.mark.parametrize(
    "request_", sorted({0, 45, 2**32 - 1} | {int(each) for each in Request} - set(FORMATS))
)
def test_requests_that_were_not_offered(frontend, device, request_):
    header = Header(request_, MessageFlag(0), 8).encode()
    with pytest.raises(FrontendError, match="this request was not offered") as caught:
        frontend.transmit(header + bytes(8), [frontend.memfd(), frontend.memfd()])
    name = f"VHOST_USER_{Request(request_).name}" if request_ in set(Request) else str(request_)
    assert name in str(caught.value)
    assert device.calls == []


@pytest.mark.parametrize("request_", FORMATS)
def test_reply_without_request(frontend, request_):
    with pytest.raises(FrontendError, match="marked as a reply, but nothing was asked"):
        frontend.transmit(Header(request_, MessageFlag.REPLY, 0).encode())


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (request, size + difference)
        for request, size in FIXED_SIZES.items()
        for difference in (-8, -1, 1, 8)
        if size + difference >= 0
    ],
)
def test_wrong_sizes(frontend, device, request_, size):
    body = bytes(size)
    with pytest.raises(FrontendError, match=f"payload of {len(body)} bytes instead of"):
        frontend.transmit(Header(request_, MessageFlag(0), len(body)).encode() + body)
    assert device.calls == []


@pytest.mark.parametrize(
    "request_",
    [
        request
        for request, size in FIXED_SIZES.items()
        if size == 0 and request is not Request.SET_BACKEND_REQ_FD
    ],
)
def test_uncalled_for_descriptors(frontend, request_):
    with pytest.raises(FrontendError, match="1 file descriptors came with it instead of 0"):
        frontend.transmit(encode_request(request_), [frontend.memfd()])


def test_more_descriptors_than_any_message_has(frontend):
    with pytest.raises(FrontendError, match="9 file descriptors came with one message"):
        frontend.transmit(encode_request(Request.GET_FEATURES), [frontend.memfd()] * 9)


def test_descriptors_may_not_pile_up_over_the_pieces(frontend):
    copies = [frontend.memfd()] * 8
    session = frontend.session
    session.receive(b"\1", [os.dup(each) for each in copies])
    with pytest.raises(FrontendError, match="9 file descriptors"):
        session.receive(b"\0", [os.dup(copies[0])])


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (1, "1 of the 12 bytes of a message header"),
        (11, "11 of the 12 bytes"),
        (12, "VHOST_USER_SET_FEATURES: the connection ended with 0 of the 8 bytes of its payload"),
        (19, "7 of the 8 bytes"),
    ],
)
def test_truncated(frontend, length, reason):
    message = Header(Request.SET_FEATURES, MessageFlag(0), 8).encode() + bytes(8)
    for byte in message[:length]:
        assert not frontend.session.receive(bytes([byte]))
    with pytest.raises(FrontendError, match=reason):
        frontend.session.end_of_stream()


def test_end_between_messages_is_no_error(frontend):
    frontend.negotiate()
    frontend.session.end_of_stream()

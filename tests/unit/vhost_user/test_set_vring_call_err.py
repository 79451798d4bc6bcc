"""SET_VRING_CALL and SET_VRING_ERR."""

import os

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import RingDescriptor
from unit.vhost_user.fakes import is_open

BOTH = pytest.mark.parametrize(
    ("request_", "field", "method"),
    [
        (Request.SET_VRING_CALL, "call_fd", "set_ring_call"),
        (Request.SET_VRING_ERR, "error_fd", "set_ring_error"),
    ],
    ids=["call", "err"],
)


@BOTH
def test_known_before_the_ring_starts(frontend, device, request_, field, method):
    eventfd = frontend.eventfd()
    frontend.send(request_, RingDescriptor(0), eventfd)
    frontend.run_ring(0)
    os.eventfd_write(getattr(device.running[0], field), 2)
    assert os.eventfd_read(eventfd) == 2
    assert device.named(method) == []


@BOTH
def test_not_there_at_all(frontend, device, request_, field, method):
    frontend.run_ring(0)
    assert getattr(device.running[0], field) is None


@BOTH
def test_changed_while_the_ring_runs(frontend, device, request_, field, method):
    frontend.send(request_, RingDescriptor(0), frontend.eventfd())
    frontend.run_ring(0)
    before = getattr(device.running[0], field)
    eventfd = frontend.eventfd()
    frontend.send(request_, RingDescriptor(0), eventfd)
    [[index, descriptor]] = device.named(method)
    assert index == 0
    assert descriptor != before
    os.eventfd_write(descriptor, 1)
    assert os.eventfd_read(eventfd) == 1
    assert not is_open(before)


@BOTH
def test_taken_away_while_the_ring_runs(frontend, device, request_, field, method):
    frontend.send(request_, RingDescriptor(0), frontend.eventfd())
    frontend.run_ring(0)
    before = getattr(device.running[0], field)
    frontend.send(request_, RingDescriptor(0, has_descriptor=False))
    assert device.named(method) == [[0, None]]
    assert not is_open(before)


@BOTH
def test_old_one_stays_if_the_device_refuses(frontend, device, request_, field, method):
    frontend.send(request_, RingDescriptor(0), frontend.eventfd())
    frontend.run_ring(0)
    device.fail[method] = HostError("no")
    assert not frontend.acknowledged(request_, RingDescriptor(0), frontend.eventfd())
    assert is_open(getattr(device.running[0], field))


@BOTH
def test_a_pipe_will_do(frontend, device, request_, field, method):
    # User-Mode Linux has no interrupt for an eventfd.
    reading, writing = os.pipe()
    frontend.own(reading)
    frontend.own(writing)
    frontend.send(request_, RingDescriptor(0), writing)
    frontend.run_ring(0)
    descriptor = getattr(device.running[0], field)
    assert not os.get_blocking(descriptor)
    os.write(descriptor, b"12345678")
    assert os.read(reading, 8) == b"12345678"


@BOTH
def test_descriptor_must_be_able_to_signal(frontend, request_, field, method):
    with pytest.raises(FrontendError, match="can signal nothing"):
        frontend.send(request_, RingDescriptor(0), frontend.own(os.open("/", os.O_PATH)))


@BOTH
def test_ring_must_exist(frontend, request_, field, method):
    with pytest.raises(FrontendError, match="ring 9 does not exist"):
        frontend.send(request_, RingDescriptor(9), frontend.eventfd())


@BOTH
def test_descriptor_and_flag_must_agree(frontend, request_, field, method):
    with pytest.raises(FrontendError, match="1 file descriptors came with it instead of 0"):
        frontend.send(request_, RingDescriptor(0, has_descriptor=False), frontend.eventfd())

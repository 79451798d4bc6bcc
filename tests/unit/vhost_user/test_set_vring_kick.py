"""SET_VRING_KICK, and when a ring starts."""

import os

import pytest

from guestwire.errors import FrontendError, HostError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import U64, RingDescriptor, RingState
from unit.vhost_user.fakes import OFFERED, is_open


def test_starts_the_ring(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    frontend.set_up_ring(0)
    assert device.running == {}
    eventfd = frontend.eventfd()
    frontend.send(Request.SET_VRING_KICK, RingDescriptor(0), eventfd)
    ring = device.running[0]
    os.eventfd_write(eventfd, 3)
    assert os.eventfd_read(ring.kick_fd) == 3
    assert not ring.enabled


STEPS = {
    "features": lambda frontend: frontend.negotiate(),
    "memory": lambda frontend: frontend.share_memory(),
    "ring": lambda frontend: frontend.set_up_ring(0),
    "kick": lambda frontend: frontend.kick(0),
}


@pytest.mark.parametrize("last", STEPS)
def test_whatever_comes_last_starts_the_ring(frontend, device, last):
    for name, step in STEPS.items():
        if name != last:
            step(frontend)
    assert device.running == {}
    STEPS[last](frontend)
    assert list(device.running) == [0]


def test_polling(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    frontend.set_up_ring(0)
    frontend.send(Request.SET_VRING_KICK, RingDescriptor(0, has_descriptor=False))
    assert device.running[0].kick_fd is None


def test_new_kick_of_a_running_ring_takes_over(frontend, device):
    frontend.run_ring(0)
    before = device.running[0]
    device.consumed = 4
    device.calls.clear()
    frontend.kick(0)
    assert [call[0] for call in device.calls] == ["stop_ring", "start_ring"]
    assert device.running[0].base == 4
    assert device.running[0].enabled
    assert not is_open(before.kick_fd) or before.kick_fd == device.running[0].kick_fd


def test_new_kick_of_a_stopped_ring_replaces_the_old_one(frontend):
    frontend.kick(0)
    before = frontend.session.backend.rings[0].kick
    frontend.kick(0)
    assert before.fileno() == -1


@pytest.mark.parametrize(("has_descriptor", "count", "expected"), [(True, 0, 1), (True, 2, 1), (False, 1, 0)])
def test_descriptor_and_flag_must_agree(frontend, has_descriptor, count, expected):
    descriptors = [frontend.eventfd() for _ in range(count)]
    with pytest.raises(FrontendError) as caught:
        frontend.send(Request.SET_VRING_KICK, RingDescriptor(0, has_descriptor), *descriptors)
    assert str(caught.value) == (
        f"VHOST_USER_SET_VRING_KICK: {count} file descriptors came with it instead of {expected}"
    )


def test_unknown_bits(frontend):
    with pytest.raises(FrontendError, match="unknown bits 0x8000000000000200 beside the ring"):
        frontend.send(Request.SET_VRING_KICK, U64(1 << 63 | 1 << 9), frontend.eventfd())


def test_ring_must_exist(frontend):
    with pytest.raises(FrontendError, match="ring 255 does not exist"):
        frontend.send(Request.SET_VRING_KICK, RingDescriptor(255), frontend.eventfd())


def test_descriptor_must_be_able_to_signal(frontend, device):
    path_only = frontend.own(os.open("/", os.O_PATH))
    with pytest.raises(FrontendError, match="its file descriptor can signal nothing"):
        frontend.send(Request.SET_VRING_KICK, RingDescriptor(0), path_only)
    assert not frontend.session.backend.rings[0].kicked


def test_ring_that_the_device_refuses_does_not_start_by_itself(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    frontend.set_up_ring(0)
    device.fail["start_ring"] = HostError("no thread left")
    kick = frontend.eventfd()
    assert not frontend.acknowledged(Request.SET_VRING_KICK, RingDescriptor(0), kick)
    del device.fail["start_ring"]
    assert frontend.acknowledged(Request.SET_FEATURES, U64(OFFERED))
    assert device.running == {}


def test_failure_ends_the_session_where_nobody_would_know(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    frontend.set_up_ring(0)
    frontend.enable(0)
    device.fail["start_ring"] = HostError("no thread left")
    with pytest.raises(HostError):
        frontend.kick(0)


def test_enabled_before_it_starts(frontend, device):
    frontend.negotiate()
    frontend.share_memory()
    frontend.set_up_ring(0)
    frontend.send(Request.SET_VRING_ENABLE, RingState(0, 1))
    frontend.kick(0)
    assert device.running[0].enabled
    assert device.named("enable_ring") == []

"""The end of a session: nothing runs, nothing is left open."""

import os

import pytest

from guestwire.errors import HostError
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import Empty, RingDescriptor


def furnish(frontend):
    """Leave a descriptor in every place that can hold one."""
    frontend.run_ring(0)
    for request in (Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        for index in (0, 1):
            frontend.send(request, RingDescriptor(index), frontend.eventfd())
    frontend.kick(2)
    frontend.send(Request.SET_BACKEND_REQ_FD, Empty(), frontend.eventfd())
    frontend.session.receive(b"\1", [os.dup(frontend.memfd())])


def test_device_is_left_without_rings_and_memory(frontend, device):
    furnish(frontend)
    device.calls.clear()
    frontend.session.close()
    assert device.calls == [("stop_ring", 0), ("reset",), ("set_memory", ())]
    assert len(frontend.session.backend.memory) == 0


def test_second_close_does_nothing(frontend, device):
    frontend.session.close()
    device.calls.clear()
    frontend.session.close()
    assert device.calls == []


@pytest.mark.parametrize("method", ["stop_ring", "reset", "set_memory"])
def test_everything_is_closed_even_if_the_device_fails(frontend, device, method):
    frontend.run_ring(3)
    furnish(frontend)
    device.calls.clear()
    device.fail[method] = HostError("no")
    with pytest.raises(HostError):
        frontend.session.close()
    assert [call[0] for call in device.calls] == ["stop_ring", "stop_ring", "reset", "set_memory"]

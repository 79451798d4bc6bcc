from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from guestwire.vhost_user.inspection import start_helper
from unit.vhost_user.fakes import FakeDevice, FakeFrontend, open_descriptors


@pytest.fixture(autouse=True, scope="module")
def _garbage_of_others() -> None:
    """What is there for good is there before descriptors are counted, and what earlier tests left is gone."""
    gc.collect()
    start_helper()


@pytest.fixture(autouse=True)
def _no_descriptor_leaks(_garbage_of_others: None) -> Iterator[None]:
    """Whatever a test does to a session, no file descriptor outlives it."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture(params=[1 << 20, 1], ids=["whole", "bytewise"])
def frontend(
    device: FakeDevice, request: pytest.FixtureRequest, _no_descriptor_leaks: None
) -> Iterator[FakeFrontend]:
    """A frontend whose messages arrive whole, and again one byte at a time."""
    frontend = FakeFrontend(device, request.param)
    yield frontend
    frontend.close()

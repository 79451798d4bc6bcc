"""The oracle against random drivers, obedient and hostile."""

from __future__ import annotations

from hypothesis import given

from guestwire.testing import raw_ring
from model.rings import (
    GUARD,
    USED_RING,
    Guest,
    ModelDevice,
    Notifications,
    Offer,
    Pop,
    Publish,
    Push,
    Script,
)
from model.strategies import scripts

USED = GUARD + USED_RING


@given(scripts(hostile=False))
def test_a_driver_that_obeys_is_never_refused(script: Script) -> None:
    device = ModelDevice(script.shape)
    guest = Guest(script.shape, device.ring_region, device)
    offered: list[list[int]] = []
    popped: list[list[int]] = []
    used: list[tuple[int, int]] = []
    for step in script.steps:
        before = guest.ring.available_index
        result = guest.perform(step)
        match step:
            case Offer() if guest.ring.available_index != before:
                offered.append(list(step.lengths))
            case Pop():
                assert device.error() == 0
                popped = [[segment.length for segment in c.segments] for c in device.popped]
            case Push() if isinstance(result, tuple):
                used.append(result)
            case Publish():
                published = (guest.ring.used_index - script.shape.start) % 2**16
                assert published == len(used)
                recent = range(max(0, len(used) - script.shape.size), len(used))
                start = script.shape.start
                assert [guest.ring.used_element(start + i) for i in recent] == [used[i] for i in recent]
    assert popped == offered[: len(popped)]


@given(scripts(hostile=True))
def test_a_hostile_driver_reaches_nothing(script: Script) -> None:
    """Whatever it writes: an error or chains inside memory, and only the used ring is written."""
    device = ModelDevice(script.shape)
    guest = Guest(script.shape, device.ring_region, device)
    size = script.shape.size
    used = slice(USED, USED + raw_ring.used_ring_size(size))
    for step in script.steps:
        before = bytes(device.memory.bytes)
        guest.perform(step)
        if not isinstance(step, Pop | Push | Publish | Notifications):
            continue
        after = bytearray(device.memory.bytes)
        after[used] = before[used]
        assert after == before
    for chain in device.popped:
        assert chain.head < size
        assert 1 <= len(chain.segments) <= size
        for segment in chain.segments:
            assert segment.length > 0
            assert any(
                region.offset <= segment.offset
                and segment.offset + segment.length <= region.offset + region.size
                for region in device.memory.regions
            )

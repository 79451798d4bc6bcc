"""Hypothesis strategies for scripts: drivers that obey, and drivers that break every rule.

A hostile script is an obedient one with a few chains in it that are nearly right: nonsense through
and through would always be refused by the first check.
"""

from __future__ import annotations

from hypothesis import strategies as st

from guestwire.testing.raw_ring import INDIRECT, NEXT, WRITE
from model.rings import (
    AVAILABLE_RING,
    DESCRIPTOR_TABLE,
    INDIRECT_AREA,
    KIB,
    REGIONS,
    USED_RING,
    Describe,
    Notifications,
    Offer,
    OfferRaw,
    Pop,
    Publish,
    Push,
    Script,
    Shape,
    Step,
    Suppress,
)

u16 = st.integers(0, 0xFFFF)

shapes = st.builds(
    Shape,
    size=st.sampled_from([1, 2, 4, 8, 8, 16, 16, 64]),
    receive=st.booleans(),
    event_idx=st.booleans(),
    indirect=st.sampled_from([True, True, True, False]),
    start=st.sampled_from([0, 1, 0xFFFF, 0xFFF0, 0x7FFF]) | u16,
)


def mostly(usual: st.SearchStrategy[int], rare: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    """Draw from `usual` nine times in ten."""
    return st.integers(0, 9).flatmap(lambda n: rare if n == 9 else usual)


@st.composite
def addresses(draw: st.DrawFn) -> int:
    """An address in a region, just outside one, in the ring itself, or anywhere."""
    start, size = draw(st.sampled_from(REGIONS))
    inside = st.integers(start, start + size - 2 * KIB)
    edge = st.sampled_from([start, start + size - 16, start + size - 1, start + size, start - 1])
    own = st.sampled_from([DESCRIPTOR_TABLE, AVAILABLE_RING, USED_RING])
    anywhere = st.sampled_from([2**63, 2**64 - 1, 2**64 - 16]) | st.integers(0, 2**64 - 1)
    return draw(mostly(inside, edge | own | anywhere)) % 2**64


lengths = mostly(
    st.integers(1, 2 * KIB),
    st.sampled_from([0, 0, 4 * KIB, 8 * KIB, 12 * KIB, 12 * KIB + 1, 2**32 - 1]) | st.integers(0, 2**32 - 1),
)

odd_flags = st.sampled_from([WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT]) | u16


@st.composite
def nearly_right_tables(
    draw: st.DrawFn, indices: list[int], *, indirect: bool, loop: bool = False
) -> list[Step]:
    """Descriptors at `indices` that make a chain, but for the odd field."""
    steps: list[Step] = []
    for i, index in enumerate(indices):
        last = i + 1 == len(indices) and not loop
        following = indices[(i + 1) % len(indices)]
        steps.append(
            Describe(
                indirect=indirect,
                index=index,
                address=draw(addresses()),
                length=draw(lengths),
                flags=draw(mostly(st.just(0 if last else NEXT), odd_flags)),
                next_index=draw(mostly(st.just(following), st.integers(0, 64) | u16)),
            )
        )
    return steps


@st.composite
def nearly_right_chains(draw: st.DrawFn, shape: Shape) -> list[Step]:
    """A chain made available, with some rule perhaps broken."""
    most = min(shape.size, 6)
    count = draw(st.integers(1, most))
    start = draw(st.integers(0, shape.size - 1))
    indices = [(start + i) % shape.size for i in range(count)]
    steps = draw(nearly_right_tables(indices, indirect=False, loop=draw(st.integers(0, 9)) == 9))
    if draw(st.booleans()):
        entries = draw(st.integers(1, 5))
        loop = draw(st.integers(0, 9)) == 9
        steps += draw(nearly_right_tables(list(range(entries)), indirect=True, loop=loop))
        steps.append(
            Describe(
                indirect=False,
                index=indices[-1],
                address=draw(mostly(st.just(INDIRECT_AREA), addresses())),
                length=draw(mostly(st.just(16 * entries), st.sampled_from([0, 8, 17, 1600, 2**32 - 16]))),
                flags=draw(mostly(st.sampled_from([INDIRECT, INDIRECT | WRITE]), odd_flags)),
                next_index=draw(u16),
            )
        )
    head = draw(mostly(st.just(indices[0]), st.integers(0, 64) | u16))
    steps.append(OfferRaw(head, jump=draw(mostly(st.just(1), st.sampled_from([0, 2]) | u16))))
    steps.append(Pop(64))
    return steps


offers = st.builds(
    Offer,
    lengths=st.lists(st.integers(1, 2 * KIB), min_size=1, max_size=4).map(tuple),
    direct=st.none() | st.integers(0, 3),
)

device_steps = (
    st.builds(Pop, most=st.integers(1, 64))
    | st.builds(Push, which=st.integers(0, 63), written=st.integers(0, 1000))
    | st.builds(Push, which=st.integers(0, 63), written=st.integers(0, 1000))
    | st.builds(Publish)
    | st.builds(Notifications, enable=st.booleans())
)


def suppressions(shape: Shape) -> st.SearchStrategy[Suppress]:
    """Wishes about notifications, around the indices that the script reaches."""
    near = st.integers(-3, 30).map(lambda n: (shape.start + n) % 2**16)
    return st.builds(Suppress, flags=st.sampled_from([0, 1]), used_event=near)


@st.composite
def scripts(draw: st.DrawFn, *, hostile: bool) -> Script:
    """A script; without `hostile` the driver obeys every rule."""
    shape = draw(shapes)
    polite: st.SearchStrategy[Step] = offers | offers | offers | device_steps | suppressions(shape)
    one = polite.map(lambda step: [step])
    groups = one | nearly_right_chains(shape) if hostile else one
    drawn = draw(st.lists(groups, min_size=4, max_size=40))
    return Script(shape, tuple(step for group in drawn for step in group))

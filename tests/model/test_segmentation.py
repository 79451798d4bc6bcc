"""The compiled segmentation against the oracle: whatever a guest sends, both make the same of it."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from guestwire.datapath import segmentation
from guestwire.virtio.segmentation import NetHeader
from guestwire.virtio.segmentation import segment as model
from model.large_frames import Sent, cut, large_frame, mutate, single_frame

randoms = st.randoms(use_true_random=False)


def compiled(header: NetHeader, frame: bytes, lengths: list[int] | None = None) -> list[bytes] | None:
    try:
        return segmentation.segment(header.pack(), frame, lengths)
    except ValueError:
        return None


def expected(header: NetHeader, frame: bytes) -> list[bytes] | None:
    try:
        return model(header, frame)
    except ValueError:
        return None


def assert_same(random: Random, sent: Sent) -> None:
    assert compiled(*sent, cut(random, len(sent[1]))) == expected(*sent)


@given(randoms)
@settings(max_examples=400, deadline=None)
def test_a_large_frame_becomes_the_segments_of_the_model(random: Random) -> None:
    header, frame = large_frame(random)
    wanted = model(header, frame)
    assert compiled(header, frame, cut(random, len(frame))) == wanted


@given(randoms)
@settings(max_examples=200, deadline=None)
def test_a_checksum_anywhere_is_completed_as_in_the_model(random: Random) -> None:
    assert_same(random, single_frame(random))


@given(randoms)
@settings(max_examples=400, deadline=None)
def test_what_the_model_refuses_is_refused(random: Random) -> None:
    make = random.choice((large_frame, single_frame))
    assert_same(random, mutate(random, *make(random)))


@given(
    header=st.binary(min_size=12, max_size=12), frame=st.binary(min_size=14, max_size=700), seed=st.integers()
)
@settings(max_examples=400, deadline=None)
def test_bytes_without_any_sense_do_no_harm(header: bytes, frame: bytes, seed: int) -> None:
    assert_same(Random(seed), (NetHeader.parse(header), frame))


def test_frames_are_neither_all_good_nor_all_bad() -> None:
    """The tests above mean something only if both happen, often."""
    random = Random(20)
    good = [expected(*mutate(random, *large_frame(random))) is not None for _ in range(300)]
    assert 0.1 < sum(good) / len(good) < 0.9
    several = [len(model(*large_frame(random))) > 1 for _ in range(300)]
    assert sum(several) / len(several) > 0.5

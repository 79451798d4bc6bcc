"""A guest that was promised zero copy, and what is said when it does not get it."""

from __future__ import annotations

from guestwire.metrics import DirectionCounters, PairCounters
from guestwire.share_watch import ShareWatch


def direction(frames: int = 0, zero_copy: int = 0, **copied: int) -> DirectionCounters:
    return DirectionCounters(
        frames=frames,
        bytes=0,
        zero_copy_frames=zero_copy,
        direct_frames=0,
        copied_bytes=0,
        gso_frames=0,
        segments=0,
        checksums=0,
        copied_frames=copied,
        drops={},
    )


def pair(rx: DirectionCounters, tx: DirectionCounters | None = None) -> list[PairCounters]:
    return [PairCounters(rx=rx, tx=tx or direction(), worker={})]


def test_nothing_is_said_of_a_good_share() -> None:
    watch = ShareWatch()
    assert watch.look(pair(direction(10_000, 9_900, page_crossing=100), direction(5_000, 5_000))) == []


def test_a_share_that_falls_is_reported_with_its_reasons_and_what_to_do() -> None:
    watch = ShareWatch()
    (sentence,) = watch.look(pair(direction(10_000, 8_000, page_crossing=1_900, buffer_too_small=100)))
    assert sentence.startswith("only 80.0% of the last 10,000 received frames went in zero copy")
    assert "1,900 page_crossing, 100 buffer_too_small" in sentence
    assert sentence.endswith("give the guest huge pages: hugetlb=on for its memory-backend-memfd")


def test_it_is_reported_once_until_it_was_good_again() -> None:
    watch = ShareWatch()
    assert len(watch.look(pair(direction(2_000, 0, few_buffers=2_000)))) == 1
    assert watch.look(pair(direction(4_000, 0, few_buffers=4_000))) == []
    assert watch.look(pair(direction(8_000, 4_000, few_buffers=4_000))) == []
    (sentence,) = watch.look(pair(direction(10_000, 4_000, few_buffers=6_000)))
    assert "0.0% of the last 2,000" in sentence
    assert "2,000 few_buffers" in sentence


def test_few_frames_say_nothing_yet_but_count() -> None:
    watch = ShareWatch()
    assert watch.look(pair(direction(600, 0, scattered=600))) == []
    (sentence,) = watch.look(pair(direction(1_200, 0, scattered=1_200)))
    assert "of the last 1,200 received" in sentence


def test_both_directions_are_watched() -> None:
    watch = ShareWatch()
    (sentence,) = watch.look(pair(direction(2_000, 2_000), direction(2_000, 1_000, header_policy=1_000)))
    assert "2,000 sent frames" in sentence


def test_counters_that_began_anew_are_no_fall() -> None:
    watch = ShareWatch()
    assert watch.look(pair(direction(50_000, 50_000))) == []
    assert watch.look(pair(direction(10, 0, few_buffers=10))) == []
    assert watch.look(pair(direction(2_010, 2_000, few_buffers=10))) == []


def test_what_was_before_does_not_matter() -> None:
    watch = ShareWatch()
    watch.begin(pair(direction(50_000)))
    assert watch.look(pair(direction(52_000, 2_000))) == []
    (sentence,) = watch.look(pair(direction(54_000, 2_000)))
    assert sentence == "only 0.0% of the last 2,000 received frames went in zero copy; guestwire status"

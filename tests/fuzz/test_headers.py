"""Everything in the datapath that reads headers of frames, fed with what a hostile guest or network sends.

``make fuzz`` runs this for long under sanitizers; without it, each test takes a moment. What a test does is
made from a seed and a number, and a failure names both.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from guestwire.datapath.merging import merge
from guestwire.datapath.receive_checksum import finish
from guestwire.datapath.segmentation import segment
from guestwire.virtio.features import Feature
from guestwire.virtio.segmentation import NetHeader
from guestwire.virtio.segmentation import segment as model
from model.large_frames import Sent, cut, large_frame, mutate, single_frame

SECONDS = float(os.environ.get("GUESTWIRE_FUZZ_SECONDS", "1"))
SEED = os.environ.get("GUESTWIRE_SEED") or str(int.from_bytes(os.urandom(4), "big"))
MERGEABLE = int(
    Feature.VIRTIO_NET_F_GUEST_CSUM
    | Feature.VIRTIO_NET_F_GUEST_TSO4
    | Feature.VIRTIO_NET_F_GUEST_TSO6
    | Feature.VIRTIO_NET_F_GUEST_ECN
)
COMPARED = 4
"""Of so many frames one is compared with the model, which is slow."""

pytestmark = pytest.mark.timeout(120 + 4 * SECONDS)


def fuzz(name: str, attempt: Callable[[Random, int], str]) -> None:
    """Call an attempt until the time is over, and print how often it came to what."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        number = outcomes.total()
        try:
            outcomes[attempt(Random(f"{SEED} {number}"), number)] += 1
        except BaseException:
            print(f"{name}: GUESTWIRE_SEED={SEED}, number {number}")
            raise
    print(f"{name}: GUESTWIRE_SEED={SEED}: {outcomes.total():,} {dict(outcomes)}")
    # An outcome that never happens means that less is tested than seems.
    assert len(outcomes) > 1


def any_frame(random: Random) -> Sent:
    kind = random.randrange(8)
    if kind == 0:
        return NetHeader.parse(random.randbytes(10)), random.randbytes(random.randint(14, 700))
    sent = random.choice((large_frame, large_frame, single_frame))(random)
    return sent if kind == 1 else mutate(random, *sent)


def test_segmentation() -> None:
    def attempt(random: Random, number: int) -> str:
        header, frame = any_frame(random)
        try:
            segments = segment(header.pack(), frame, cut(random, len(frame)))
        except ValueError:
            segments = None
        if number % COMPARED == 0:
            try:
                wanted = model(header, frame)
            except ValueError:
                wanted = None
            assert segments == wanted
        if segments is None:
            return "refused"
        return "one segment" if len(segments) == 1 else "several segments"

    fuzz("segmentation", attempt)


def test_unfinished_checksums() -> None:
    def attempt(random: Random, number: int) -> str:
        _, frame = any_frame(random)
        cuts = []
        if random.getrandbits(1):
            cuts = sorted(random.sample(range(1, len(frame)), random.randint(0, min(3, len(frame) - 1))))
        done = finish(frame, may_mark=bool(random.getrandbits(1)), cuts=cuts)
        if done is None:
            return "left alone"
        header, finished = done
        # A checksum field, and nothing else: SCTP's has four bytes.
        changed = [at for at in range(len(frame)) if frame[at] != finished[at]] or [0]
        assert len(finished) == len(frame)
        assert changed[-1] - changed[0] < 4
        if header[0]:
            assert finished == frame
            assert segment(header, frame)
            return "marked"
        return "finished"

    fuzz("unfinished checksums", attempt)


def stream(random: Random) -> list[bytes]:
    """Segments of one frame or two, some of them changed, out of order, or missing."""
    frames: list[bytes] = []
    for _ in range(random.randint(1, 2)):
        header, frame = large_frame(random)
        frames += segment(header.pack(), frame)[:20]
    for _ in range(random.choice((0, 0, 1, 2))):
        at = random.randrange(len(frames))
        kind = random.randrange(3)
        if kind == 0:
            frames[at] = mutate(random, NetHeader(), frames[at])[1]
        elif kind == 1:
            frames.insert(random.randrange(len(frames)), frames.pop(at))
        elif len(frames) > 1:
            del frames[at]
    return frames


def test_merging() -> None:
    def attempt(random: Random, number: int) -> str:
        frames = stream(random)
        merged = merge(frames, offloads=MERGEABLE)
        # What was merged, taken apart, is what has arrived.
        assert [wire for header, frame in merged for wire in segment(header, frame)] == frames
        return "merged" if len(merged) < len(frames) else "left alone"

    fuzz("merging", attempt)

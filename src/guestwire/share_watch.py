"""Watches whether a guest that was promised zero copy gets it: nothing shall fall back in silence."""

from __future__ import annotations

from collections.abc import Iterable

from guestwire.metrics import PairCounters, total

LEAST_SHARE = 0.99
LEAST_FRAMES = 1000  # of one direction between two looks: fewer say little

REMEDIES = {
    "buffer_too_small": "add trust-mtu=yes to the port if the switch lets no frame above the MTU through, or "
    "lower the MTU of the interface",
    "page_crossing": "give the guest huge pages: hugetlb=on for its memory-backend-memfd",
    "few_buffers": "start the guest with rx_queue_size=1024",
    "other_queue": "give the NIC as many queues as the guest uses (ethtool -L, or ethtool -X IFNAME equal N)",
    "scattered": "nothing: its driver spreads frames over more buffers than a descriptor of the NIC's names",
    "header_policy": "leave out headers=copied and source= if the guest is trusted",
    "bad_place": "nothing: its driver is a legacy one, or puts headers apart from frames",
}


class ShareWatch:
    """Compares a guest's counters at one look with those at the last."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, int, dict[str, int]]] = {}
        self._below: dict[str, bool] = {}

    def begin(self, pairs: Iterable[PairCounters]) -> None:
        """Begin here: what was counted before does not matter."""
        pairs = list(pairs)
        for direction in ("rx", "tx"):
            counted = total(pair["rx"] if direction == "rx" else pair["tx"] for pair in pairs)
            self._before[direction] = (
                counted["frames"],
                counted["zero_copy_frames"],
                counted["copied_frames"],
            )

    def look(self, pairs: Iterable[PairCounters]) -> list[str]:
        """Return a sentence for each direction whose share has fallen under 99 % since the last look.

        A share that stays below is reported once, until it was good again.
        """
        pairs = list(pairs)
        sentences = []
        for direction, words in (("rx", "received"), ("tx", "sent")):
            counted = total(pair["rx"] if direction == "rx" else pair["tx"] for pair in pairs)
            now = (counted["frames"], counted["zero_copy_frames"], counted["copied_frames"])
            frames_before, zero_copy_before, copied_before = self._before.get(direction, (0, 0, {}))
            frames = now[0] - frames_before
            if 0 <= frames < LEAST_FRAMES:
                continue
            self._before[direction] = now
            if frames < 0:  # another counter file: the guest was bound anew
                continue
            share = (now[1] - zero_copy_before) / frames
            below = share < LEAST_SHARE
            if below and not self._below.get(direction, False):
                copied = {reason: n - copied_before.get(reason, 0) for reason, n in now[2].items()}
                sentences.append(_sentence(words, share, frames, copied))
            self._below[direction] = below
        return sentences


def _sentence(words: str, share: float, frames: int, copied: dict[str, int]) -> str:
    reasons = sorted((reason for reason, n in copied.items() if n > 0), key=lambda reason: -copied[reason])
    why = ", ".join(f"{copied[reason]:,} {reason}" for reason in reasons)
    remedy = REMEDIES.get(reasons[0], "guestwire status") if reasons else "guestwire status"
    copies = f"; copied: {why}" if why else ""
    return f"only {share:.1%} of the last {frames:,} {words} frames went in zero copy{copies}; {remedy}"

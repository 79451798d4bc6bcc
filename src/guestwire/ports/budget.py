"""How much memory may be pinned: a limit for the process and one for each guest.

The kernel pins all memory that is registered with AF_XDP, and counts it once for each registration: a guest
with two queue pairs registers its memory twice. A budget counts as the kernel does, before the kernel does.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from guestwire.sizes import format_size, size_setting


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why memory may not be pinned, in a sentence, and what to do about it."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return self.reason


class PinnedBudget:
    """The limits of a process, and what its guests hold of them. Any thread may call it.

    Args:
        limit: bytes that all guests together may hold; None for any amount.
        guests: the limits of guests that have one of their own, in bytes, by name.
    """

    def __init__(self, limit: int | None = None, guests: Mapping[str, int] | None = None) -> None:
        self._limit = limit
        self._guests = dict(guests or {})
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    def limit(self, guest: str) -> int | None:
        """Return the most bytes that a guest can ever hold; None for any amount."""
        limits = (self._limit, self._guests.get(guest))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def held(self) -> int:
        """Bytes that all guests hold together."""
        with self._lock:
            return sum(self._held.values())

    def held_by(self, guest: str) -> int:
        """Return the bytes that a guest holds."""
        with self._lock:
            return self._held.get(guest, 0)

    def most(self, guest: str) -> int | None:
        """Return the most bytes that a guest could hold now, if it held nothing; None for any amount."""
        with self._lock:
            others = sum(held for name, held in self._held.items() if name != guest)
            rest = None if self._limit is None else max(0, self._limit - others)
        return min((limit for limit in (rest, self._guests.get(guest)) if limit is not None), default=None)

    def reserve(self, guest: str, amount: int) -> Refusal | None:
        """Take `amount` bytes for one registration; on a refusal nothing is taken."""
        with self._lock:
            held = self._held.get(guest, 0)
            refusal = self._refusal(guest, amount, held, sum(self._held.values()))
            if refusal is None:
                self._held[guest] = held + amount
            return refusal

    def release(self, guest: str, amount: int) -> None:
        """Give back what `reserve` took, once the kernel has been told to unpin it.

        Raises:
            ValueError: the guest does not hold that much.
        """
        with self._lock:
            held = self._held.get(guest, 0)
            if not 0 <= amount <= held:
                raise ValueError(f"guest {guest} cannot release {amount} bytes: it holds {held}")
            self._held[guest] = held - amount

    def for_guest(self, guest: str) -> GuestBudget:
        """Return the budget as one guest's port sees it."""
        return GuestBudget(self, guest)

    def _refusal(self, guest: str, amount: int, held: int, held_by_all: int) -> Refusal | None:
        """Say which limit is in the way, the guest's own first."""
        own = self._guests.get(guest)
        if own is not None and held + amount > own:
            return Refusal(
                f"{format_size(amount)} would have to be pinned, and guest {guest} holds {format_size(held)} "
                f"of the {format_size(own)} that it may (its max_pinned)",
                f'set max_pinned = "{size_setting(held + amount)}" or more for guest {guest}, or use '
                "mode=bounce",
            )
        if self._limit is not None and held_by_all + amount > self._limit:
            return Refusal(
                f"{format_size(amount)} would have to be pinned for guest {guest}, and the guests of this "
                f"process hold {format_size(held_by_all)} of the {format_size(self._limit)} that they may "
                "(its max_pinned)",
                f"allow {size_setting(held_by_all + amount)} or more (--max-pinned, or max_pinned at the top "
                "of the file), or use mode=bounce",
            )
        return None


class GuestBudget:
    """A `PinnedBudget` as one guest's port sees it.

    Args:
        budget: of the process.
        guest: whose part of it.
    """

    def __init__(self, budget: PinnedBudget, guest: str) -> None:
        self._budget, self._guest = budget, guest

    @classmethod
    def unlimited(cls) -> GuestBudget:
        """Return a budget without limits, for a port that no process with guests owns."""
        return cls(PinnedBudget(), "")

    @property
    def limit(self) -> int | None:
        """The most bytes that the guest can ever hold; None for any amount."""
        return self._budget.limit(self._guest)

    @property
    def most(self) -> int | None:
        """The most bytes that the guest could hold now, if it held nothing; None for any amount."""
        return self._budget.most(self._guest)

    @property
    def held(self) -> int:
        """Bytes that the guest holds."""
        return self._budget.held_by(self._guest)

    def reserve(self, amount: int) -> Refusal | None:
        """Take `amount` bytes for one registration; on a refusal nothing is taken."""
        return self._budget.reserve(self._guest, amount)

    def release(self, amount: int) -> None:
        """Give back what `reserve` took, once the kernel has been told to unpin it.

        Raises:
            ValueError: the guest does not hold that much.
        """
        self._budget.release(self._guest, amount)

"""The budget: never exceeded, exact to the byte, and it says whose limit is in the way."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestwire.ports.budget import GuestBudget, PinnedBudget, Refusal

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("process", "own", "effective"),
    [
        (None, None, None),
        (8, None, 8),
        (None, 4, 4),
        (8, 4, 4),
        (4, 8, 4),
    ],
)
def test_the_smaller_limit_holds(process: int | None, own: int | None, effective: int | None) -> None:
    budget = PinnedBudget(process, {} if own is None else {"web": own})
    assert budget.limit("web") == budget.for_guest("web").limit == effective
    assert budget.limit("other") == process


def test_a_refusal_takes_nothing() -> None:
    budget = PinnedBudget(10, {"web": 6})
    web, mail = budget.for_guest("web"), budget.for_guest("mail")
    assert web.reserve(6) is None
    assert web.reserve(1) is not None
    assert mail.reserve(5) is not None
    assert mail.reserve(4) is None
    assert (web.held, mail.held, budget.held) == (6, 4, 10)
    web.release(6)
    assert mail.reserve(6) is None
    assert (web.held, mail.held, budget.held) == (0, 10, 10)


def test_a_refusal_names_whose_limit_it_is() -> None:
    budget = PinnedBudget(8 * GIB, {"web": 2 * GIB})
    web, mail = budget.for_guest("web"), budget.for_guest("mail")
    assert web.reserve(1 * GIB) is None
    assert web.reserve(1 * GIB + 4 * MIB) == Refusal(
        "1,028 MiB would have to be pinned, and guest web holds 1 GiB of the 2 GiB that it may "
        "(its max_pinned)",
        'set max_pinned = "2052M" or more for guest web, or use mode=bounce',
    )
    refusal = mail.reserve(7 * GIB + 1)
    assert refusal is not None
    assert str(refusal) == (
        "7,168 MiB would have to be pinned for guest mail, and the guests of this process hold 1 GiB of the "
        "8 GiB that they may (its max_pinned)"
    )
    assert "allow 8193M or more (--max-pinned" in refusal.remedy


def test_only_what_is_held_is_released() -> None:
    budget = PinnedBudget()
    web = budget.for_guest("web")
    assert web.reserve(5) is None
    for amount in (6, -1):
        with pytest.raises(ValueError, match="guest web cannot release"):
            web.release(amount)
    with pytest.raises(ValueError, match="guest mail cannot release 1 bytes: it holds 0"):
        budget.release("mail", 1)
    assert web.held == 5


def test_without_a_process_there_is_no_limit() -> None:
    one, other = GuestBudget.unlimited(), GuestBudget.unlimited()
    assert one.limit is None
    assert one.reserve(1 << 60) is None
    assert (one.held, other.held) == (1 << 60, 0)


@given(
    st.integers(0, 50),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 30)),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.booleans())),
)
def test_no_limit_is_ever_exceeded(
    limit: int, guests: dict[str, int], steps: list[tuple[str, int, bool]]
) -> None:
    budget, held = PinnedBudget(limit, guests), dict.fromkeys("abc", 0)
    for guest, amount, take in steps:
        if not take:
            budget.release(guest, held[guest])
            held[guest] = 0
            continue
        fits = sum(held.values()) + amount <= limit and held[guest] + amount <= guests.get(guest, limit)
        assert (budget.reserve(guest, amount) is None) == fits
        held[guest] += amount * fits
    assert {guest: budget.held_by(guest) for guest in "abc"} == held
    assert budget.held == sum(held.values())


def test_threads() -> None:
    """Eight threads take 1 of 5, again and again: nobody sees more than 5 taken, and all of it comes back."""
    budget = PinnedBudget(5)
    start = threading.Barrier(8)
    too_many: list[int] = []
    taken = [0] * 8

    def guest(number: int) -> None:
        mine = budget.for_guest(f"guest{number}")
        start.wait(10)
        for _ in range(2000):
            if mine.reserve(1) is None:
                taken[number] += 1
                if (held := budget.held) > 5:
                    too_many.append(held)
                mine.release(1)

    threads = [threading.Thread(target=guest, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not too_many
    assert all(taken)
    assert budget.held == 0

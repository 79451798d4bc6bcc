"""What a worker watches while it sleeps, and while it works."""

from __future__ import annotations

from pathlib import Path

from backend.process import wait_until
from unit.datapath.wired import EVERYBODY, Join, frame, join
from unit.datapath.working import working

__all__ = ["join"]


def epolls() -> dict[str, int]:
    """How many descriptors each epoll of this process watches (proc(5))."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()) == "anon_inode:[eventpoll]":
                found[link.name] = Path("/proc/self/fdinfo", link.name).read_text().count("tfd:")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def test_a_port_is_not_watched_while_there_is_work(join: Join) -> None:
    guest = join()
    before = epolls()
    with working(guest.pair, poll_us=100_000):
        (own,) = epolls().keys() - before.keys()
        # What wakes it, and the port; the rings have no kick descriptors.
        wait_until(lambda: epolls()[own] == 2)

        def send_and_look() -> bool:
            sent = guest.counted()["tx"]["frames"] + 1
            guest.send(frame(EVERYBODY, guest.address))
            wait_until(lambda: guest.counted()["tx"]["frames"] == sent)
            return epolls()[own] == 1

        wait_until(send_and_look)
        wait_until(lambda: epolls()[own] == 2)

"""A worker sleeps briefly first where a NIC's driver may ask for a call only after the last look."""

from __future__ import annotations

import contextlib
import os

from backend.process import wait_until
from guestwire.datapath.split_ring import SplitRing
from unit.datapath.working import working
from unit.datapath.xdp_machine import XdpMachine


def test_a_short_sleep_follows_buffers_for_a_nic() -> None:
    """Why, model/test_need_wakeup.py shows."""
    with contextlib.closing(XdpMachine("zero-copy")) as guest, contextlib.ExitStack() as kicks:
        for ring in (guest.rx, guest.tx):
            kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
            kicks.callback(os.close, kick_fd)
            ring.device = SplitRing(
                guest.window,
                ring.size,
                ring.at,
                ring.at + 0x1000,
                ring.at + 0x2000,
                receive=ring.receive,
                kick_fd=kick_fd,
            )
        guest.attach()
        for number in range(1, 11):
            guest.offer_receive(number)
        with working(guest.pair, poll_us=0):
            # There is nothing else that ends a sleep.
            wait_until(lambda: guest.counted()["worker"]["sleeps"] >= 1)
        assert guest.port.held == (10, 0, 0)
        guest.detach()

"""Binding a guest to another port while it runs: BIND and UNBIND in one step.

The new port is opened first, which can take a second, while the old one still works; what both need, such as
the interface, they share. All that can be known to be refused is refused then, and the guest notices nothing.
Then the link goes down, the queue pairs leave the old port with every buffer accounted for, and go on at the
new one from the exact indexes; the link comes up.

What only the last step shows (a driver that does not bind a socket as it announced) makes the guest go back
to the old port, after a moment without one. Only if that fails, too, has it none.
"""

from __future__ import annotations

import time

from guestwire import offer
from guestwire.datapath.window import Window
from guestwire.errors import GuestwireError, HostError
from guestwire.guest import Guest
from guestwire.ports.base import Port


def rebind(guest: Guest, description: str, port: Port) -> float:
    """Bind a guest to another port.

    Not for the event loop: it waits for the kernel, the NIC and the guest's session.

    Args:
        guest: open; whether a frontend is connected, and whether its rings run, does not matter.
        description: the words that name the port.
        port: not yet opened.

    Returns:
        for how long the guest's rings had no port, in milliseconds.

    Raises:
        GuestwireError: the guest cannot use that port, and has the old one.
    """
    if not guest.rebinding.acquire(blocking=False):
        raise HostError(f"guest {guest.config.name} is just being bound to another port", "guestwire status")
    try:
        milliseconds = _rebind(guest, description, port)
    finally:
        guest.rebinding.release()
    _announce(guest)
    return milliseconds


def _rebind(guest: Guest, description: str, port: Port) -> float:
    old, before = guest.port, guest.config.port
    offer.require_queue_pairs(guest.config, description, port)
    try:
        port.open(guest.config.queue_pairs, old)
        with guest.lock:
            milliseconds = _switch(guest, description, port)
    except BaseException:
        port.close()
        raise
    old.close()
    guest.log.info(
        "bound to port %s instead of %s, after %.1f ms without a port", description, before, milliseconds
    )
    return milliseconds


def _switch(guest: Guest, description: str, port: Port) -> float:
    """Let the queue pairs go on at the port; the lock is held. Returns milliseconds."""
    pairs, old = guest.pairs, guest.port
    if guest.closed:
        raise HostError(f"guest {guest.config.name} is not served: {guest.state}", "guestwire status")
    offer.require_port(guest.config, description, port, guest.features, guest.mtu)
    window, old_window, old_place = guest.window_for(port), pairs.window, pairs.port
    taken = old_window is not None and old_window.pages.lost
    if window is not None:
        window.pages.lost = False  # a new trial
    try:
        pairs.prepare(window, port)
        start = time.monotonic()
        guest.show_link(up=False)
        try:
            pairs.rest()
            port.configure(old)
            pairs.move(window, port)
        except Exception as error:
            pairs.rest()
            _restore(old_window, taken)
            _go_back(guest, port, old_window, old_place, error)
            raise
    except BaseException:
        _restore(old_window, taken)
        _close(window, unless=old_window)
        raise
    milliseconds = 1000 * (time.monotonic() - start)
    guest.bind(description, port)
    _close(old_window, unless=window)
    return milliseconds


def _go_back(guest: Guest, port: Port, window: Window | None, place: Port, reason: Exception) -> None:
    """Let the queue pairs go on where they were."""
    try:
        if guest.lost is None:
            guest.port.configure(port)
        guest.pairs.move(window, place)
    except Exception as error:
        guest.pairs.window = window
        guest.lose_port(f"{reason}; nor can it go back to port {guest.config.port}: {error}")
    else:
        guest.show_link()


def _restore(window: Window | None, taken: bool) -> None:
    """Remember of the guest's memory what was known before it was tried anew."""
    if window is not None:
        window.pages.lost = taken


def _close(window: Window | None, unless: Window | None) -> None:
    if window is not None and window is not unless:
        window.close()


def _announce(guest: Guest) -> None:
    """Tell the network where the guest is now, if its address is known for sure."""
    if guest.config.mac is None:
        return
    try:
        guest.announce(bytes.fromhex(guest.config.mac.replace(":", "")))
    except GuestwireError as error:
        guest.log.warning("%s; %s", error, error.remedy)

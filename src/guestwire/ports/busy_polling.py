"""Busy polling of an ``xdp`` port's sockets, if its options ask for it."""

from __future__ import annotations

import logging

from guestwire.host.busy_polling import borrowed, polls_queue, prefer_busy_polling, require_busy_polling
from guestwire.host.checks import Status
from guestwire.host.checks.busy_polling import check_busy_polling
from guestwire.host.interface import Interface
from guestwire.ports.registration import Registration
from guestwire.ports.xdp_options import XdpOptions

log = logging.getLogger(__name__)


def require_what_is_asked(options: XdpOptions) -> None:
    """Make sure that busy polling can be had, if it is asked for, before anything is taken.

    Raises:
        GuestwireError: the kernel does not know or does not permit it.
    """
    if options.busy_poll:
        require_busy_polling(options.busy_poll_budget)


def set_up(registration: Registration, interface: Interface, options: XdpOptions) -> tuple[bool, str]:
    """Set up a socket that was bound, and warn of what keeps busy polling from its effect.

    Returns:
        whether a worker's calls on it will poll its queue, if asked for; and why they will not, else empty.

    Raises:
        GuestwireError: the kernel refuses.
    """
    if not options.busy_poll:
        return False, ""
    with borrowed(registration.socket.fd) as bound:
        prefer_busy_polling(bound, options.busy_poll_budget)
        polls = polls_queue(bound)
    check = check_busy_polling(interface, polls, asked=True)
    if check.status is not Status.OK:
        log.warning("%s: %s: %s; %s", interface.name, check.found, check.meaning, check.remedy)
    # Calls that poll nothing would only take time.
    return polls, "" if polls else f"busy-poll=yes has no effect: {check.found}"

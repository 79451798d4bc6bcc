"""What is looked at while a guest is served, because nobody tells of it.

Each watch is a task. It runs only while there is something to look at: an idle guest costs next to nothing,
and one without a frontend nothing at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol, TypeVar

from guestwire.errors import log_error
from guestwire.guest import Guest
from guestwire.metrics import read_counters
from guestwire.share_watch import ShareWatch
from guestwire.start_watch import NOT_STARTED, WAITING, StartWatch
from guestwire.vhost_user.endpoint import Endpoint

_Result = TypeVar("_Result")

SHARE_SECONDS = 10.0
START_SECONDS = 0.5
WAITING_SECONDS = 5.0  # between looks for another frontend, once the guest is at work
PORT_SECONDS = 2.0
MEMORY_SECONDS = 0.1
RETRY_SECONDS = 1.0  # after a watch has failed
MEMORY_SHARE = 0.05  # of a CPU's time, at most, for a guest that has much memory
SPREAD_SECONDS = 0.1  # after a queue pair has begun or ended work: others follow, as a guest starts and stops


class InThread(Protocol):
    """Runs a function in a thread, where it may wait."""

    def __call__(self, function: Callable[[], _Result]) -> Awaitable[_Result]:
        """Return what the function returns."""


class Watching:
    """The watches of one guest; made and used in the event loop.

    Args:
        guest: open.
        endpoint: where its frontends come from.
        in_thread: for looks that may have to wait.
        look_at_port: called when something has happened to the port's interface.
    """

    def __init__(
        self, guest: Guest, endpoint: Endpoint, in_thread: InThread, look_at_port: Callable[[], None]
    ) -> None:
        self._guest, self._endpoint, self._in_thread = guest, endpoint, in_thread
        self._look_at_port = look_at_port
        self._loop = asyncio.get_running_loop()
        self._start: StartWatch | None = None  # of the session that there is
        self._session = asyncio.Event()
        # Set when a queue pair has gone to work, or has ended it.
        self._for_spreading, self._for_memory, self._for_port = (asyncio.Event() for _ in range(3))
        guest.pairs.changed = lambda: self._soon(self._pairs_changed)
        watches = {
            "its share of zero copy": self._share,
            "its memory": self._memory,
            "its queues": self._pairs,
            "its start": self._starts,
            "its port": self._port,
        }
        self._said: set[str] = set()  # about the start of this session's guest
        self._tasks = [asyncio.create_task(self._keep(*each)) for each in watches.items()]

    def end(self) -> None:
        """Watch no more."""
        for task in self._tasks:
            task.cancel()

    def session_begins(self) -> None:
        """A frontend has come."""
        self._guest.notices, self._said = [], set()
        self._start = StartWatch(self._loop.time())
        self._session.set()

    def session_ends(self) -> None:
        """The frontend has gone; in any thread."""
        self._start = None
        self._soon(self._session_ended)

    def _soon(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all watches
            self._loop.call_soon_threadsafe(function)

    def _session_ended(self) -> None:
        if self._start is None:  # no other has come since
            self._session.clear()
            self._guest.notices = []

    def _pairs_changed(self) -> None:
        for event in (self._for_spreading, self._for_memory, self._for_port):
            event.set()

    async def _keep(self, what: str, watch: Callable[[], Coroutine[None, None, None]]) -> None:
        """Go on with a watch that fails, and say so once as long as it fails in the same way."""
        last = ""
        while True:
            try:
                await watch()
            except Exception as error:  # the next look has another chance
                if str(error) != last:
                    last = str(error)
                    log_error(self._guest.log, f"{what} cannot be watched", error)
            await asyncio.sleep(RETRY_SECONDS)
            self._pairs_changed()

    # --- the watches ---------------------------------------------------------------------------------

    async def _pairs(self) -> None:
        """Let pairs cover for those that are not at work, once these are the same for a while."""
        guest, changed = self._guest, self._for_spreading
        while await changed.wait():
            while changed.is_set():
                changed.clear()
                await asyncio.sleep(SPREAD_SECONDS)
            if guest.port.interface_index is None:  # nothing spreads frames over its pairs
                continue
            await self._in_thread(guest.spread)

    async def _port(self) -> None:
        """Look for what the kernel tells nobody of."""
        guest = self._guest
        while await self._for_port.wait():
            self._for_port.clear()
            while guest.pairs.at_work and guest.port.interface_index is not None:
                await asyncio.sleep(PORT_SECONDS)
                if await self._in_thread(lambda: guest.port.disturbed):
                    self._look_at_port()

    async def _memory(self) -> None:
        """See whether memory that is pinned is given back."""
        guest = self._guest
        while await self._for_memory.wait():
            self._for_memory.clear()
            pause = MEMORY_SECONDS
            while guest.memory_pinned:
                await asyncio.sleep(pause)
                pause = MEMORY_SECONDS
                if guest.memory_suspect:
                    spent = await self._in_thread(guest.follow_memory)
                    pause = max(pause, spent / MEMORY_SHARE)

    async def _starts(self) -> None:
        """Say once in a session what seems to be wrong with its guest's start."""
        while await self._session.wait():
            if (watch := self._start) is not None:
                await self._follow_start(watch)
            await asyncio.sleep(0)  # for the session's end to be noted

    async def _follow_start(self, watch: StartWatch) -> None:
        guest, waits = self._guest, False
        while True:
            await asyncio.sleep(WAITING_SECONDS if watch.content and not waits else START_SECONDS)
            if watch is not self._start:
                return
            waited, waits = waits, self._endpoint.waiting()
            notices = [WAITING] if waited and waits else []
            if not watch.content:
                if (seen := guest.see()) is None:
                    continue
                notices += watch.look(self._loop.time(), seen, _kicks(guest))
            for notice in notices:
                if notice not in self._said:
                    self._said.add(notice)
                    level = logging.INFO if notice == NOT_STARTED else logging.WARNING
                    guest.log.log(level, "%s", notice)
            guest.notices = notices

    async def _share(self) -> None:
        """Warn when a guest that was to have zero copy has it no more."""
        guest, watch = self._guest, ShareWatch()
        while await self._session.wait():
            await asyncio.sleep(SHARE_SECONDS)
            with contextlib.suppress(
                OSError
            ):  # no more there, or no descriptor left: the next look tells more
                counters = read_counters(guest.counters_path)
                if guest.port.status().asked_mode != "zero-copy":
                    watch.begin(counters)
                    continue
                for sentence in watch.look(counters):
                    guest.log.warning("%s", sentence)


def _kicks(guest: Guest) -> int:
    return sum(pair["worker"]["kicks"] for pair in read_counters(guest.counters_path))

"""The process: guests and their sessions, signals, the control socket."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import guestwire
from guestwire.config import Configuration, GuestConfig
from guestwire.control import (
    ControlServer,
    Counters,
    Direction,
    GuestState,
    Memory,
    PortState,
    Rebound,
    Ring,
    Status,
)
from guestwire.errors import ConfigurationError, GuestwireError, log_error
from guestwire.guest import Guest
from guestwire.host.link_monitor import LinkMonitor
from guestwire.metrics import read_counters, total
from guestwire.ports.budget import PinnedBudget
from guestwire.ports.parse import parse_port
from guestwire.queue_pairs import host_refuses
from guestwire.rebind import rebind
from guestwire.runtime import CONTROL_SOCKET, COUNTERS_SUFFIX, RuntimeDirectory
from guestwire.vhost_user.endpoint import Connector, Endpoint, Inherited, Listener
from guestwire.vhost_user.inspection import start_helper
from guestwire.vhost_user.session import Session
from guestwire.vhost_user.transport import serve
from guestwire.virtio.features import names
from guestwire.watching import Watching
from guestwire.worker import allow_interrupts

_Result = TypeVar("_Result")

CHANGES = 5  # threads for each guest: `rebind`, the port, the pairs, the memory, and what the port is asked

log = logging.getLogger(__name__)


def describe(guest: Guest, budget_bytes: int | None = None) -> GuestState:
    """Return the public state of a guest (`guestwire.control`), with its limit on pinned memory."""
    port = guest.port.status()
    window = guest.window
    try:
        pairs = read_counters(guest.counters_path)
    except FileNotFoundError:  # it is not served
        pairs = []
    worker: dict[str, int] = {}
    for pair in pairs:
        for key, value in pair["worker"].items():
            worker[key] = worker.get(key, 0) + value
    return GuestState(
        name=guest.config.name,
        socket_path=guest.config.socket_path,
        state=guest.state,
        features=names(guest.features),
        rings=[
            Ring(
                index=index,
                direction="tx" if index % 2 else "rx",
                size=ring.configuration.size,
                enabled=ring.enabled,
                error=ring.error,
            )
            for index, ring in sorted(guest.rings.copy().items())
        ],
        port=PortState(
            description=guest.config.port,
            kind=port.kind,
            interface=port.interface,
            mode=port.mode,
            mode_reason=port.mode_reason,
            network=port.network,
            members=list(port.members),
        ),
        memory=Memory(
            guest_bytes=window.guest_bytes if window else 0,
            pinned_bytes=port.pinned_bytes,
            budget_bytes=budget_bytes,
            taken=guest.memory_taken,
        ),
        counters=Counters(
            rx=Direction(**total(pair["rx"] for pair in pairs)),
            tx=Direction(**total(pair["tx"] for pair in pairs)),
            worker=worker,
            kernel=port.kernel,
        ),
        notices=guest.notices,
    )


def _ending_signals() -> list[signal.Signals]:
    """Return the signals that end the process: SIGHUP too, unless whoever started it wants that ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup(1)
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


def _allow_descriptors() -> None:
    """Raise the soft limit on open files to the hard one: a guest's memory alone can be 509 of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start_threads(pool: ThreadPoolExecutor, count: int) -> None:
    """Have a pool's threads from the start, so that none is missing when a guest needs one."""
    together = threading.Barrier(count)
    try:
        for _ in range(count):
            pool.submit(together.wait)
    except RuntimeError:  # how threading says EAGAIN
        together.abort()


def _budget(configuration: Configuration) -> PinnedBudget:
    guests = {
        guest.name: limit for guest in configuration.guest if (limit := guest.max_pinned_bytes) is not None
    }
    return PinnedBudget(configuration.max_pinned_bytes, guests)


def _endpoint(config: GuestConfig) -> Endpoint:
    if config.fd is not None:
        return Inherited(config.fd)
    assert config.socket_path is not None
    path = Path(config.socket_path)
    return Connector(path) if config.role == "connect" else Listener(path, config.socket_access)


class Daemon:
    """Serves the guests of a configuration until it is told to end.

    Args:
        configuration: checked (`guestwire.config.check`).
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._budget = _budget(configuration)
        self._guests: list[Guest] = []
        self._endpoints: dict[Guest, Endpoint] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # By guest: to be set when its port is to be looked at, because something has happened to it.
        self._looks: dict[Guest, asyncio.Event] = {}
        # Changes that no session asks for; they wait for sessions, and so not in the sessions' threads.
        self._changes = ThreadPoolExecutor(CHANGES * len(configuration.guest), "change")
        self._ending = asyncio.Event()

    def status(self) -> Status:
        """Return the state of all guests."""
        return Status(
            pid=os.getpid(),
            version=guestwire.__version__,
            guests=[describe(guest, self._budget.limit(guest.config.name)) for guest in self._guests],
        )

    async def rebind(self, name: str, description: str) -> Rebound:
        """Bind a guest to another port (`guestwire.rebind`).

        Raises:
            GuestwireError: there is no such guest or port, or the guest cannot use it.
        """
        guest = next((guest for guest in self._guests if guest.config.name == name), None)
        if guest is None:
            known = ", ".join(guest.config.name for guest in self._guests)
            raise ConfigurationError(
                f"process {os.getpid()} serves no guest {name!r}; it serves: {known}", "guestwire status"
            )
        port = parse_port(description, self._budget.for_guest(name), name)
        before = guest.config.port
        milliseconds = await self._change(lambda: rebind(guest, description, port))
        self._look_at(guest)
        return Rebound(guest=name, old_port=before, port=description, milliseconds=milliseconds)

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, or until every guest's connection is gone for good.

        Raises:
            GuestwireError: none of the guests could be served.
        """
        loop = asyncio.get_running_loop()
        # A thread for each guest's session: whatever one of them takes its time for, no other waits.
        allow_interrupts()
        _allow_descriptors()
        _start_threads(self._changes, CHANGES * len(self._configuration.guest))
        loop.set_default_executor(ThreadPoolExecutor(len(self._configuration.guest), "session"))
        for number in _ending_signals():
            loop.add_signal_handler(number, self._ending.set)
        start_helper()
        runtime = RuntimeDirectory()
        control = ControlServer(runtime.path / CONTROL_SOCKET, self.status, self.rebind)
        links: LinkMonitor | None = None
        try:
            await control.start()
            links = self._follow_links()
            await self._start_guests(runtime.path)
            await self._until_end()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for guest in self._guests:
                await self._close(guest)
            if links is not None:
                loop.remove_reader(links)
                links.close()
            await control.stop()
            runtime.close()

    async def _until_end(self) -> None:
        ending = asyncio.create_task(self._ending.wait())
        served = asyncio.gather(*self._tasks, return_exceptions=True)
        both: list[asyncio.Future[Any]] = [ending, served]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if served.done():
            for failure in filter(None, served.result()):
                raise failure

    async def _start_guests(self, directory: Path) -> None:
        """Open every guest; one that cannot be served is logged, and matters only if it is the last."""
        self._guests = [
            Guest(
                config,
                parse_port(config.port, self._budget.for_guest(config.name), config.name),
                directory / f"{config.name}{COUNTERS_SUFFIX}",
            )
            for config in self._configuration.guest
        ]
        failure: GuestwireError | None = None
        for guest in self._guests:
            await asyncio.sleep(0)  # signals are heard
            if self._ending.is_set():
                return
            try:
                with host_refuses(f"serve guest {guest.config.name}"):
                    endpoint = self._open(guest)
            except GuestwireError as error:
                failure = error
                await self._give_up(guest, error)
                continue
            self._tasks.append(asyncio.create_task(self._serve(guest, endpoint), name=guest.config.name))
        if not self._tasks and failure is not None:
            raise failure

    def _open(self, guest: Guest) -> Endpoint:
        # The socket before the port: a path in use is known before an interface is touched.
        endpoint = self._endpoints[guest] = _endpoint(guest.config)
        guest.open()
        asyncio.get_running_loop().add_reader(guest.trouble_fd, self._on_trouble, guest)
        self._looks[guest] = asyncio.Event()
        return endpoint

    async def _close(self, guest: Guest) -> None:
        if (endpoint := self._endpoints.pop(guest, None)) is not None:
            endpoint.close()
        if guest.trouble_fd >= 0:
            asyncio.get_running_loop().remove_reader(guest.trouble_fd)
        self._looks.pop(guest, None)
        try:
            await self._change(guest.close)
        except Exception as error:  # the others, and what the process has made, are closed all the same
            log_error(guest.log, "its port cannot be closed", error)

    async def _give_up(self, guest: Guest, error: Exception) -> None:
        """Serve a guest no more; that of a process's only guest is shown when the process ends."""
        await self._close(guest)
        guest.state = f"failed: {error}"
        if len(self._guests) > 1:
            log_error(guest.log, "not served", error)

    async def _serve(self, guest: Guest, endpoint: Endpoint) -> None:
        waiting = "connecting" if guest.config.role == "connect" else "listening"

        class GuestSession(Session):
            def close(self) -> None:
                try:
                    super().close()
                finally:
                    guest.state = waiting
                    watching.session_ends()
                    guest.log.info("the frontend is gone")

        def session() -> Session:
            guest.state = "connected"
            watching.session_begins()
            guest.log.info("the frontend is there")
            return GuestSession(guest, refused=lambda error: log_error(guest.log, "refused", error))

        def ended(error: Exception) -> None:
            log_error(guest.log, "the session ended", error)

        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        watching = Watching(guest, endpoint, self._change, lambda: self._look_at(guest))

        def config_changed() -> None:
            loop.call_soon_threadsafe(changed.set)

        guest.config_changed = config_changed
        guest.state = waiting
        where = guest.config.socket_path or f"file descriptor {guest.config.fd}"
        guest.log.info("%s on %s, port %s", waiting, where, guest.config.port)
        following = asyncio.create_task(self._follow_port(guest, self._looks[guest]))
        try:
            await serve(endpoint, session, ended, changed)
        except Exception as error:
            await self._give_up(guest, error)
            raise
        finally:
            following.cancel()
            watching.end()
        # An inherited connection is gone, and no other can come.
        self._guests.remove(guest)
        await self._close(guest)

    # --- what happens to ports -----------------------------------------------------------------------

    async def _change(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._changes, function)

    def _follow_links(self) -> LinkMonitor | None:
        """Look at a port whenever something happens to its interface."""
        try:
            links = LinkMonitor()
        except GuestwireError as error:
            log.warning("link changes will not be noticed: %s; %s", error, error.remedy)
            return None
        asyncio.get_running_loop().add_reader(links, self._on_link_events, links)
        return links

    def _on_link_events(self, links: LinkMonitor) -> None:
        events = links.read()
        changed = None if events is None else {event.index for event in events}
        for guest in self._looks:
            if changed is None or guest.port.interface_index in changed:
                self._look_at(guest)

    def _on_trouble(self, guest: Guest) -> None:
        if guest.on_trouble() and guest in self._looks:
            self._looks[guest].set()

    def _look_at(self, guest: Guest) -> None:
        """Have a guest's port looked at, if it is one that can change."""
        if guest in self._looks and guest.port.interface_index is not None:
            self._looks[guest].set()

    async def _follow_port(self, guest: Guest, look: asyncio.Event) -> None:
        while await look.wait():
            look.clear()
            try:
                await self._change(guest.follow_port)
            except Exception as error:  # the next event has another chance
                log_error(guest.log, "its port cannot be looked at", error)

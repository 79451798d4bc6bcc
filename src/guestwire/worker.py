"""The threads that run a guest's queue pairs in the compiled loop, and how pairs come to them and leave.

A worker belongs to one guest: a frontend that makes a worker wait (`Worker._until_taken`) holds up nobody
else.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.worker import WorkLoop
from guestwire.errors import HostError

IMPATIENCE_SECONDS = 0.001  # with one that was blocked before
PATIENCE_SECONDS = 0.5  # a worker takes a change over sooner by itself, unless something blocks it
INTERRUPT = signal.SIGURG  # ignored by default: harmless where `allow_interrupts` was not called

log = logging.getLogger(__name__)


def allow_interrupts() -> None:
    """Let workers be interrupted in a system call. To be called in the main thread."""
    signal.signal(INTERRUPT, lambda _number, _frame: None)


def require_cpus(cpus: Sequence[int]) -> None:
    """Make sure that workers can run on these CPUs.

    Raises:
        HostError: on one of them this process may not run, or it does not exist.
    """

    def refused() -> list[int]:
        # Who may run where, the kernel knows alone: it is asked by a thread whose CPUs are nobody else's.
        return [cpu for cpu in sorted(set(cpus)) if not _run_on(cpu)]

    if not cpus:
        return
    with ThreadPoolExecutor(1) as thread:
        missing = thread.submit(refused).result()
    if missing:
        raise HostError(
            f"cpus: this process cannot run on CPU {', '.join(map(str, missing))}",
            "lscpu --extended shows which there are; systemd (AllowedCPUs=) and containers allow fewer",
        )


def _run_on(cpu: int) -> bool:
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return False
    return True


class Worker:
    """A thread for some queue pairs of one guest; it lives as long as it has any.

    Args:
        name: the thread's.
        cpu: where it shall run; None for anywhere.
        poll_us: the longest time that it polls before it sleeps, in microseconds.

    Attributes:
        loop: what the thread runs.
    """

    def __init__(self, name: str, cpu: int | None, poll_us: int) -> None:
        self.loop = WorkLoop(poll_us=poll_us)
        self._cpu = cpu
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._patience = PATIENCE_SECONDS
        self._ended = False
        self._ending = threading.Lock()

    def _run(self) -> None:
        try:
            if self._cpu is not None:
                self._pin(self._cpu)
            self.loop.run()
        finally:
            with self._ending:
                self._ended = True

    def _pin(self, cpu: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            log.warning("%s cannot run on CPU %d: %s", self._thread.name, cpu, error.strerror)

    def add(self, pair: QueuePair) -> None:
        """Have a pair worked on beside the others, which go on meanwhile.

        Raises:
            OSError: one of its descriptors cannot be waited for.
        """
        self.loop.add(pair)
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError as error:  # how threading says EAGAIN
                raise OSError(errno.EAGAIN, str(error)) from error
        self._until_taken()

    def remove(self, pair: QueuePair) -> None:
        """Have a pair left alone; after the last one the thread has ended."""
        self.loop.remove(pair)
        self._until_taken()
        if not self.loop.pairs:
            self._thread.join()

    def _until_taken(self) -> None:
        """Wait until the thread has seen a change.

        It may be blocked in a write to the frontend's call descriptor: O_NONBLOCK belongs to the open
        file, which the frontend shares, so it can take that off again, and fill the file.
        """
        while not self.loop.is_taken(self._patience):
            with self._ending:  # the thread cannot be gone while we look
                if self._ended:
                    return
                if self._thread.ident is not None:
                    signal.pthread_kill(self._thread.ident, INTERRUPT)
            self._patience = IMPATIENCE_SECONDS


class Workers:
    """The workers of one guest: one for each CPU that is named, else one for each queue pair.

    Args:
        name: the guest's.
        cpus: where they shall run; the pairs take them in turn. Empty for anywhere.
    """

    def __init__(self, name: str, cpus: Sequence[int]) -> None:
        self._name, self._cpus = name, cpus
        self._workers: dict[str, Worker] = {}

    def _cpu(self, number: int) -> int | None:
        return self._cpus[number % len(self._cpus)] if self._cpus else None

    def _worker_name(self, number: int) -> str:
        cpu = self._cpu(number)
        return f"{self._name}/{number}" if cpu is None else f"{self._name}@{cpu}"

    def add(self, number: int, pair: QueuePair, poll_us: int) -> None:
        """Put a pair to work.

        Args:
            number: the pair's.
            pair: set up, and in no worker's hands.
            poll_us: for a worker that has no pair yet; those of a guest have one port, and so one value.

        Raises:
            OSError: one of its descriptors cannot be waited for, or there is no thread to be had.
        """
        name = self._worker_name(number)
        worker = self._workers.get(name) or Worker(name, self._cpu(number), poll_us)
        worker.add(pair)
        self._workers[name] = worker

    def remove(self, number: int, pair: QueuePair) -> None:
        """End a pair's work; nobody else touches it when this returns."""
        name = self._worker_name(number)
        worker = self._workers[name]
        worker.remove(pair)
        if not worker.loop.pairs:
            del self._workers[name]

    def wake(self, number: int) -> None:
        """Have the worker of this pair look at it."""
        self._workers[self._worker_name(number)].loop.wake()

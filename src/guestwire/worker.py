"""The thread that runs a queue pair in the compiled loop, and how it is ended."""

from __future__ import annotations

import logging
import os
import signal
import threading

from guestwire.datapath.queue_pair import QueuePair

PATIENCE_SECONDS = 0.5  # a worker ends sooner by itself, unless something blocks it
INTERRUPT = signal.SIGURG  # ignored by default: harmless where `allow_interrupts` was not called

log = logging.getLogger(__name__)


def allow_interrupts() -> None:
    """Let workers be interrupted in a system call. To be called in the main thread."""
    signal.signal(INTERRUPT, lambda _number, _frame: None)


class Worker:
    """A thread for one queue pair, from `start` to `stop`.

    Args:
        pair: what it runs.
        name: the thread's.
        cpu: where it shall run; None for anywhere.

    Attributes:
        pair: what it runs.
    """

    def __init__(self, pair: QueuePair, name: str, cpu: int | None) -> None:
        self.pair = pair
        self._cpu = cpu
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended = threading.Event()
        self._ending = threading.Lock()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._cpu is not None:
                self._pin(self._cpu)
            self.pair.run()
        finally:
            with self._ending:
                self._ended.set()

    def _pin(self, cpu: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            log.warning("%s cannot run on CPU %d: %s", self._thread.name, cpu, error.strerror)

    def stop(self) -> None:
        """End the pair's work and wait for that.

        The worker may be blocked in a write to the frontend's call descriptor: O_NONBLOCK belongs to
        the open file, which the frontend shares, so it can take that off again, and fill the file.
        """
        self.pair.stop()
        patience = PATIENCE_SECONDS
        while not self._ended.wait(patience):
            with self._ending:  # the thread cannot be gone while we look
                if not self._ended.is_set() and self._thread.ident is not None:
                    signal.pthread_kill(self._thread.ident, INTERRUPT)
            patience = 0.01
        self._thread.join()

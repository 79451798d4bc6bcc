"""What the guests of this process share of an interface: one XDP program, and the agreement who has what.

The kernel takes one XDP program for an interface. The first guest brings it, the last one takes it off; in
between guests come and go, and none disturbs another: attaching resets some NICs for a second.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from pathlib import Path

from guestwire.errors import HostError
from guestwire.host.interface import Interface
from guestwire.host.steering import queue_names
from guestwire.host.xdp_program import XdpProgram

log = logging.getLogger(__name__)

_OUR_NAMESPACE = Path("/proc/thread-self/ns/net")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What one port wants of an interface.

    Attributes:
        guest: whose port it is. A guest that changes ports has two for a moment, which may want the same.
        queues: the receive queues.
        steer: the address whose frames are led there; None without such a rule.
    """

    guest: str
    queues: range
    steer: str | None = None


class SharedInterface:
    """An interface as the guests of this process share it; made by `join`.

    Attributes:
        program: the XDP program on it.
    """

    # An interface's number is known within its network namespace, and threads may be in different ones.
    _all: dict[tuple[int, int, int], SharedInterface] = {}  # noqa: RUF012 (one table for the process)
    _lock = threading.Lock()

    def __init__(self, key: tuple[int, int, int], program: XdpProgram) -> None:
        self.program = program
        self._key = key
        self._claims: list[Claim] = []

    @classmethod
    def join(cls, interface: Interface, claim: Claim, *, multi_buffer: bool) -> SharedInterface:
        """Have the XDP program on an interface, and some of its queues.

        Args:
            interface: in the network namespace of the calling thread.
            claim: what is wanted.
            multi_buffer: whether a program that is not there yet accepts frames that lie in several buffers.

        Raises:
            HostError: another guest has one of the queues or the address, or the kernel refuses the program.
        """
        namespace = _OUR_NAMESPACE.stat()
        key = (namespace.st_dev, namespace.st_ino, interface.index)
        with cls._lock:
            shared = cls._all.get(key)
            if shared is None:
                program = XdpProgram.attach(interface.index, interface.most_queues, multi_buffer=multi_buffer)
                shared = cls._all[key] = cls(key, program)
            else:
                shared._require_free(interface, claim)
                shared._attach_again(interface.name)
            shared._claims.append(claim)
        return shared

    def leave(self, claim: Claim) -> None:
        """Give up what was claimed; with the last claim the program goes."""
        with self._lock:
            self._claims.remove(claim)
            if not self._claims:
                del self._all[self._key]
                self.program.close()

    def is_taken(self, queue: int, *, beside: Claim) -> bool:
        """Whether another claim than this one names a queue: of the same guest, or it would not be there."""
        with self._lock:
            return any(queue in claim.queues for claim in self._claims if claim is not beside)

    @property
    def attached(self) -> bool:
        """Whether the program is still on the interface, or nobody wants it there any more."""
        with self._lock:
            return not self._claims or self.program.attached

    def attach_again(self, name: str) -> None:
        """Put the program back if somebody has taken it off; the interface is called ``name`` now.

        Raises:
            HostError: another program is there, or the kernel refuses.
        """
        with self._lock:
            self._attach_again(name)

    def _attach_again(self, name: str) -> None:
        if not self.program.attached:
            self.program.attach_again()
            log.warning("%s: somebody had taken the XDP program off; it is attached anew", name)

    def _require_free(self, interface: Interface, claim: Claim) -> None:
        """Make sure that no other guest is in the way."""
        for other in self._claims:
            if other.guest == claim.guest:
                continue
            if both := frozenset(other.queues) & frozenset(claim.queues):
                raise HostError(
                    f"interface {interface.name}: guest {other.guest} has {queue_names(both)} already",
                    self._free_queues(interface, claim),
                )
            if claim.steer is not None and claim.steer == other.steer:
                raise HostError(
                    f"interface {interface.name}: frames for {claim.steer} are led to guest {other.guest} "
                    "already (its steer=)",
                    "give each guest an address of its own",
                )

    def _free_queues(self, interface: Interface, claim: Claim) -> str:
        """Say which queues a guest could have instead."""
        taken = {queue for other in self._claims for queue in other.queues}
        wanted = len(claim.queues)
        for first in range(interface.receive_queues - wanted + 1):
            if taken.isdisjoint(range(first, first + wanted)):
                return f"use another queue (,queue={first})"
        return interface.queues_remedy(max(taken) + wanted)

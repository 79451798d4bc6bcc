"""Memory registered with AF_XDP for one queue pair: pinned, charged to the guest's budget, not yet bound.

Registering pins the guest's memory and has it watched, a fifth of a second for each GiB of small pages. A
pair that changes its memory or its port registers anew while it still works, and is without a queue only for
as long as binding takes.
"""

from __future__ import annotations

import errno
import time

from guestwire.datapath.contiguous_pages import find_contiguous_pages
from guestwire.datapath.window import Window
from guestwire.datapath.xdp_socket import XdpSocket, XdpSocketError
from guestwire.errors import GuestwireError, HostError
from guestwire.host.capabilities import memory_lock_bytes
from guestwire.host.pinned_memory import largest_window, registration_cost
from guestwire.host.privileges import Capability, permission_error
from guestwire.ports.budget import GuestBudget
from guestwire.ports.modes import Plan
from guestwire.sizes import format_size

RELEASE_SECONDS = 2.0  # the kernel lets go of a closed socket's queue and memory later, at most after so long
RETRY_SECONDS = 0.005


def contiguous_share(window: Window) -> float:
    """Find out which pages a device sees in one piece (`find_contiguous_pages`).

    Raises:
        HostError: the kernel does not let us look.
    """
    try:
        return find_contiguous_pages(window)
    except OSError as error:
        raise HostError(
            f"where the guest's pages lie cannot be seen: {error}", "use mode=direct, or raise ulimit -n"
        ) from error


class Registration:
    """A socket with a window registered as a plan wants it.

    Args:
        window: the guest's memory.
        plan: mode and geometry. interface, queue: what it will be bound to.
        frames: where the bounce frames lie in the window that are registered, instead of what the plan says.
        ring_size, rx_size: entries of the socket's rings.
        budget: pays for what is pinned, until `close`.
        released_at: when a socket of the same owner was closed (`time.monotonic`): the kernel takes the
            charge for locked memory back somewhat later.

    Attributes:
        socket: the socket. window: what is registered. plan: how.
        pinned_bytes: how much of it is pinned.
        share: of the borders between guest pages, those that a frame may cross in zero-copy mode.

    Raises:
        GuestwireError: the budget or the kernel refuses; nothing is left behind.
    """

    def __init__(
        self,
        window: Window,
        plan: Plan,
        interface: str,
        queue: int,
        *,
        ring_size: int,
        rx_size: int,
        budget: GuestBudget,
        released_at: float,
        frames: range | None = None,
    ) -> None:
        self.window, self.plan, self._budget = window, plan, budget
        self._interface, self._queue, self._frames = interface, queue, frames
        self.share = 1.0
        what = self._what
        self.pinned_bytes = window.size if plan.pins else window.size - window.bounce_offset
        if frames is not None:
            self.pinned_bytes = len(frames)
        if plan.pins and not registration_cost(window.size, plan.geometry.chunk, zero_copy=False).array_fits:
            most = largest_window(plan.geometry.chunk)
            raise HostError(
                f"{what}: {format_size(window.size)} are to be registered, and the kernel registers at most "
                f"{format_size(most)} in chunks of {plan.geometry.chunk} bytes",
                "use mode=bounce, or a smaller guest",
            )
        if refusal := budget.reserve(self.pinned_bytes):
            raise HostError(f"{what}: {refusal.reason}", refusal.remedy)
        self._watches = False
        try:
            if plan.pins:
                self._watch()  # first: what leaves memory after it was pinned shall be seen
            self.socket = self._register(ring_size, rx_size, released_at + RELEASE_SECONDS)
        except BaseException:
            self._release()
            raise
        try:
            if plan.mode == "zero-copy":
                # Once more, now that the pages are pinned: they can have been moved for that.
                self.share = contiguous_share(window)
        except BaseException:
            self.close()
            raise

    def _watch(self) -> None:
        try:
            self.window.pages.begin()
        except OSError as error:
            raise HostError(
                f"{self._what}: pages that are taken away would not be noticed: {error}", "use mode=bounce"
            ) from error
        self._watches = True

    def _register(self, ring_size: int, rx_size: int, deadline: float) -> XdpSocket:
        while True:
            try:
                return XdpSocket(
                    self.window,
                    guest_memory=self.plan.pins,
                    chunk=self.plan.geometry.chunk,
                    headroom=self.plan.geometry.headroom,
                    ring_size=ring_size,
                    rx_size=rx_size,
                    frames=self._frames,
                )
            except XdpSocketError as error:
                if error.errno != errno.ENOBUFS or time.monotonic() > deadline:
                    raise self._refusal(error) from error
                time.sleep(RETRY_SECONDS)

    @property
    def _what(self) -> str:
        return f"interface {self._interface} queue {self._queue}"

    def bind(self, interface_index: int) -> None:
        """Bind to the queue, which may still be held by a socket that was closed just now.

        Raises:
            GuestwireError: the kernel or the driver refuses.
        """
        deadline = time.monotonic() + RELEASE_SECONDS
        zero_copy = self.plan.mode == "zero-copy"
        while True:
            try:
                self.socket.bind(
                    interface_index=interface_index,
                    queue=self._queue,
                    zero_copy=zero_copy,
                    several_buffers=self.plan.geometry.several_buffers,
                )
                return
            except XdpSocketError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise self._refusal(error) from error
                time.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Close the socket, and give back what it cost. Not to be called before its worker has ended."""
        self.socket.close()
        self._release()

    def _release(self) -> None:
        self._budget.release(self.pinned_bytes)
        self.pinned_bytes = 0
        if self._watches:
            self._watches = False
            self.window.pages.end()

    def _refusal(self, error: XdpSocketError) -> GuestwireError:
        """Turn the kernel's refusal into what it means."""
        what, size = self._what, format_size(self.pinned_bytes)
        limit = memory_lock_bytes()
        if error.errno in {errno.EPERM, errno.EACCES}:
            return permission_error(f"an AF_XDP socket on {what}", {Capability.CAP_NET_RAW})
        if error.errno == errno.ENOBUFS and error.step == "register memory" and limit is not None:
            return HostError(
                f"{what}: {size} must be pinned and the limit on locked memory is {format_size(limit)}",
                "raise it (ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit), grant "
                "CAP_IPC_LOCK, or use mode=bounce",
            )
        if error.errno in {errno.ENOMEM, errno.ENOBUFS}:
            return HostError(
                f"{what}: the kernel has no memory for {error.step} of a window of {size}",
                "use mode=bounce, or a smaller guest",
            )
        if error.errno == errno.EBUSY:
            return queue_busy(self._interface, self._queue)
        return HostError(
            f"{what}: the kernel refuses {self.plan.mode} mode at {error.step}: {error.strerror}",
            f"guestwire doctor {self._interface}",
        )


class QueueBusyError(HostError):
    """Somebody else has the queue: no other mode would help."""


def queue_busy(interface: str, queue: int) -> QueueBusyError:
    """Say that a queue has a socket of somebody else's."""
    return QueueBusyError(
        f"interface {interface} queue {queue} is in use by another AF_XDP socket",
        "use another queue (,queue=N), or find out whose it is: ss --xdp -p",
    )

"""The xdp port: a network interface whose queues are AF_XDP sockets on the guest's memory.

The interface is taken when the port opens: the XDP program stays attached for the port's life, because
attaching resets some NICs for a second. A queue's socket lives as long as a guest's rings run on its memory;
between times the frames go to the host's own network stack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import time
from typing import Literal, get_args

import guestwire.datapath.port
from guestwire.datapath.window import Window
from guestwire.datapath.xdp import XdpPort
from guestwire.datapath.xdp_socket import XdpSocket, XdpSocketError
from guestwire.errors import GuestwireError, HostError
from guestwire.host.announce import send_rarp
from guestwire.host.capabilities import AfXdpSupport, af_xdp_support, memory_lock_bytes
from guestwire.host.checks import Status, require
from guestwire.host.checks.interface import (
    check_checksum,
    check_default_route,
    check_link,
    check_mtu,
)
from guestwire.host.interface import Interface
from guestwire.host.netlink import wait_until_released
from guestwire.host.privileges import Capability, permission_error
from guestwire.host.xdp_program import REQUIRED_CAPABILITIES, XdpProgram
from guestwire.ports import geometry
from guestwire.ports.base import PortStatus
from guestwire.ports.geometry import Geometry

log = logging.getLogger(__name__)

Mode = Literal["auto", "zero-copy", "direct", "bounce"]
MODES: tuple[Mode, ...] = get_args(Mode)

RELEASE_SECONDS = 2.0  # the kernel lets go of a closed socket's queue later, at most after so long
LONGEST_RELEASE_SECONDS = 0.25
RING_ENTRIES = 2048  # of each AF_XDP ring, unless a virtqueue is larger


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """One way to attach: a mode, its geometry, and why no better one was taken."""

    mode: Mode
    geometry: Geometry
    reason: str


@dataclasses.dataclass(slots=True)
class _Attached:
    """A queue pair's share of the port."""

    queue: int
    socket: XdpSocket
    port: XdpPort
    plan: _Plan
    pinned_bytes: int


class XdpControl:
    """A network interface, driven through AF_XDP.

    Args:
        interface: its name, in the network namespace of this process.
        queue: the interface's queue of the first queue pair; the others follow.
        mode: what is asked for; ``auto`` takes the best that works and says why it is not better.
    """

    def __init__(self, interface: str, queue: int = 0, mode: Mode = "auto") -> None:
        self.name, self.queue, self.mode = interface, queue, mode
        self.max_queue_pairs = 64
        self.bounce_frames = RING_ENTRIES if mode == "bounce" else 512
        self.mtu = 0
        self._interface: Interface | None = None
        self._program: XdpProgram | None = None
        self._multi_buffer = False
        self._attached: dict[int, _Attached] = {}
        self._past: dict[str, int] = {}
        self._closed_at = -RELEASE_SECONDS

    # --- the port's life -----------------------------------------------------------------------------

    def open(self, queue_pairs: int) -> None:
        """Take the interface: check it and attach the XDP program.

        Raises:
            GuestwireError: there is no such interface or queue, it carries the host's default route, its
                frames do not fit, or the kernel refuses.
        """
        interface = Interface.open(self.name)
        for queue in range(self.queue, self.queue + queue_pairs):
            interface.require_queue(queue)
        require(
            check_link(interface),
            check_default_route(interface),
            check_mtu(interface, geometry.largest_mtu()),
        )
        self._interface = interface
        self.mtu = interface.mtu
        self._multi_buffer = self._require_sockets()
        self._program = XdpProgram.attach(interface.index, self.queue + queue_pairs)
        if self._program.mode_reason:
            log.info("%s: generic XDP: %s", self.name, self._program.mode_reason)
        checksum = check_checksum(interface)
        if checksum.status is not Status.OK:
            log.warning("%s: %s: %s; %s", self.name, checksum.found, checksum.meaning, checksum.remedy)

    def _require_sockets(self) -> bool:
        """Make sure that AF_XDP sockets can be made; return whether they know multi-buffer frames."""
        support, multi_buffer = af_xdp_support()
        if support is AfXdpSupport.NOT_PERMITTED:
            required = REQUIRED_CAPABILITIES | {Capability.CAP_NET_RAW}
            raise permission_error(f"driving interface {self.name} through AF_XDP", required)
        if support is AfXdpSupport.ABSENT:
            raise HostError("this kernel has no AF_XDP sockets", "use a kernel with CONFIG_XDP_SOCKETS=y")
        return bool(multi_buffer)

    def close(self) -> None:
        """Give the interface back."""
        for pair in list(self._attached):
            self.detach(pair)
        if self._program is not None:
            self._program.close()
            self._program = None

    # --- a queue pair's attachment -------------------------------------------------------------------

    def attach(self, pair: int, window: Window, queue_size: int) -> guestwire.datapath.port.Port:
        """Bind a socket for the queue pair in the best mode there is.

        Raises:
            GuestwireError: no mode that was asked for works; the message says why.
        """
        assert self._program is not None
        entries = max(RING_ENTRIES, queue_size)
        queue = self.queue + pair
        plans = self._plans()
        failures: list[str] = []
        while True:
            plan = plans.pop(0)
            plan = dataclasses.replace(plan, reason="; ".join(filter(None, (plan.reason, *failures))))
            try:
                socket = self._bind(window, plan, queue, entries)
                break
            except XdpSocketError as error:
                refusal = self._refusal(error, plan, window, queue)
                if not plans or error.errno == errno.EBUSY:
                    raise refusal from error
                failures.append(f"{plan.mode}: {refusal}")
        port = XdpPort(
            socket,
            umem_offset=0 if plan.mode != "bounce" else window.bounce_offset,
            bounce_offset=window.bounce_offset + pair * self.bounce_frames * geometry.FRAME_BYTES,
            bounce_frames=self.bounce_frames,
            guest_memory=plan.mode != "bounce",
            chunk=plan.geometry.chunk,
            headroom=plan.geometry.headroom,
            room_needed=plan.geometry.room_needed,
            longest_frame=plan.geometry.longest_frame,
            multi_buffer=self._multi_buffer and plan.mode == "direct",
        )
        pinned = window.size - (0 if plan.mode != "bounce" else window.bounce_offset)
        self._attached[pair] = _Attached(queue, socket, port, plan, pinned)
        log.info(
            "%s queue %d: %s mode%s",
            self.name,
            queue,
            plan.mode,
            f" ({plan.reason})" if plan.reason else "",
        )
        return port

    def _plans(self) -> list[_Plan]:
        """List the ways to attach, best first, each with why a better one is not on the list."""
        assert self._interface is not None
        interface = self._interface
        wanted = MODES[1:] if self.mode == "auto" else (self.mode,)
        copy = geometry.copy_mode(self.mtu)
        plans = []
        reason = ""
        if "zero-copy" in wanted:
            zero_copy = geometry.zero_copy_mode(self.mtu, interface.driver)
            if obstacle := self._zero_copy_obstacle(zero_copy):
                reason = f"zero-copy: {obstacle}"
                if self.mode == "zero-copy":
                    raise HostError(
                        f"interface {self.name} cannot do mode=zero-copy: {obstacle}",
                        f"guestwire doctor {self.name}",
                    )
            elif zero_copy is not None:
                plans.append(_Plan("zero-copy", zero_copy, ""))
        if "direct" in wanted:
            plans.append(_Plan("direct", copy, reason))
        if "bounce" in wanted:
            plans.append(_Plan("bounce", copy, reason))
        return plans

    def _zero_copy_obstacle(self, zero_copy: Geometry | None) -> str | None:
        """Say why zero-copy mode need not even be tried."""
        assert self._interface is not None
        assert self._program is not None
        interface = self._interface
        if interface.xdp is not None and not interface.xdp.zero_copy:
            return f"the driver ({interface.driver}) does not offer it"
        if self._program.mode != "native":
            return f"it needs native XDP: {self._program.mode_reason}"
        if zero_copy is None:
            return f"frames of MTU {interface.mtu} do not fit in one chunk as the driver lays them out"
        if interface.iommu_group_type not in {None, "identity"}:
            return (
                f"the IOMMU translates for it (group type {interface.iommu_group_type}), which scatters "
                "the guest's memory; boot with iommu=pt"
            )
        return None

    def _bind(self, window: Window, plan: _Plan, queue: int, entries: int) -> XdpSocket:
        assert self._interface is not None
        if plan.mode == "zero-copy":
            window.find_contiguous_pages()
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            try:
                return XdpSocket(
                    window,
                    guest_memory=plan.mode != "bounce",
                    interface_index=self._interface.index,
                    queue=queue,
                    zero_copy=plan.mode == "zero-copy",
                    chunk=plan.geometry.chunk,
                    headroom=plan.geometry.headroom,
                    ring_size=entries,
                )
            except XdpSocketError as error:
                # The queue, and what was charged as locked memory, may be our own from just now: the
                # kernel releases a closed socket later.
                late = {
                    errno.EBUSY: deadline,
                    errno.ENOBUFS: self._closed_at + RELEASE_SECONDS,
                }.get(error.errno or 0, 0.0)
                if time.monotonic() > late:
                    raise
                time.sleep(0.005)

    def _refusal(self, error: XdpSocketError, plan: _Plan, window: Window, queue: int) -> GuestwireError:
        """Turn the kernel's refusal into what it means."""
        what = f"interface {self.name} queue {queue}"
        limit = memory_lock_bytes()
        if error.errno in {errno.EPERM, errno.EACCES}:
            return permission_error(f"an AF_XDP socket on {what}", {Capability.CAP_NET_RAW})
        if error.errno == errno.ENOBUFS and error.step == "register memory" and limit is not None:
            need = window.size - (0 if plan.mode != "bounce" else window.bounce_offset)
            return HostError(
                f"{what}: {need} bytes must be pinned and the limit on locked memory is {limit} bytes",
                "raise it (ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit), grant "
                "CAP_IPC_LOCK, or use mode=bounce",
            )
        if error.errno in {errno.ENOMEM, errno.ENOBUFS}:
            return HostError(
                f"{what}: the kernel has no memory for {error.step} of a window of {window.size} bytes",
                "use mode=bounce, or a smaller guest",
            )
        if error.errno == errno.EBUSY:
            return HostError(
                f"{what} is in use by another AF_XDP socket",
                "use another queue (,queue=N) or stop the program that holds it: ss --xdp -p",
            )
        return HostError(
            f"{what}: the kernel refuses {plan.mode} mode at {error.step}: {error.strerror}",
            f"guestwire doctor {self.name}",
        )

    def resume(self, pair: int) -> None:
        """Send the queue's frames to the socket."""
        assert self._program is not None
        attached = self._attached[pair]
        self._program.set_socket(attached.queue, attached.socket.fd)

    def quiesce(self, pair: int) -> None:
        """Let the queue's frames pass to the host's network stack again."""
        attached = self._attached.get(pair)
        if attached and self._program:
            # The kernel takes the entry out by itself when the interface goes away.
            with contextlib.suppress(GuestwireError, OSError):
                self._program.clear_socket(attached.queue)

    def detach(self, pair: int) -> None:
        """Close the queue pair's socket."""
        attached = self._attached.pop(pair, None)
        if attached is None:
            return
        self._count(attached, self._past)
        attached.port.close()
        self._closed_at = time.monotonic()
        if attached.plan.mode == "zero-copy" and self._interface is not None:
            # close() returns before the NIC has let go: until then it may write into the guest's buffers.
            self._wait_until_released(attached.queue)

    def _wait_until_released(self, queue: int) -> None:
        assert self._interface is not None
        try:
            released = wait_until_released(self._interface.index, queue, timeout_s=RELEASE_SECONDS)
        except OSError:
            return  # the interface is gone, and its NIC writes nowhere
        if not released:
            # A kernel before 6.14 cannot say: the longest time that was ever measured, several times over.
            time.sleep(LONGEST_RELEASE_SECONDS)

    def announce(self, mac: bytes) -> None:
        """Send a gratuitous RARP from the interface."""
        send_rarp(self.name, mac)

    # --- what it says of itself ----------------------------------------------------------------------

    @staticmethod
    def _count(attached: _Attached, into: dict[str, int]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for name, value in attached.socket.statistics().items():
                into[name] = into.get(name, 0) + value

    def status(self) -> PortStatus:
        """Describe the port, with the mode in use while a guest is attached."""
        kernel = dict(self._past)
        attached = list(self._attached.values())
        for one in attached:
            self._count(one, kernel)
        mode = attached[0].plan.mode if attached else None
        reason = attached[0].plan.reason or None if attached else "no guest is attached"
        pinned = sum(one.pinned_bytes for one in attached)
        return PortStatus("xdp", self.name, mode, reason, pinned, kernel)

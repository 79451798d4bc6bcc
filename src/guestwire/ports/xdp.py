"""The xdp port: a network interface whose queues are AF_XDP sockets on the guest's memory.

The interface is taken when the port opens. The XDP program, which guests of this process share, stays
attached for the port's life, because attaching resets some NICs for a second. A queue's socket lives as long
as a guest's rings run on its memory, and the queues of the guest's other pairs have stand-ins then. When no
pair is at work the frames go to the host's own network stack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import time
from collections.abc import Collection, Sequence
from socket import if_indextoname

import guestwire.datapath.port
from guestwire.datapath.window import Window
from guestwire.datapath.xdp import XdpPort
from guestwire.errors import GuestwireError, HostError
from guestwire.host.address_filter import AddressFilter
from guestwire.host.announce import send_rarp
from guestwire.host.capabilities import AfXdpSupport, HostCapabilities, af_xdp_support
from guestwire.host.checks import Status, require
from guestwire.host.checks.interface import (
    check_checksum,
    check_default_route,
    check_link,
    check_mtu,
    check_vlan,
    hands_over_unfinished_checksums,
)
from guestwire.host.flow_steering import FlowSteering, require_steerable
from guestwire.host.interface import Interface, is_there
from guestwire.host.netlink import socket_on_queue, wait_until_released
from guestwire.host.pinned_memory import locked_memory_limit
from guestwire.host.privileges import Capability, permission_error
from guestwire.host.xdp_program import REQUIRED_CAPABILITIES, XdpProgram
from guestwire.ports import busy_polling, geometry, modes
from guestwire.ports.base import POLL_US, Port, PortStatus, require_source
from guestwire.ports.budget import GuestBudget
from guestwire.ports.modes import MODES, Plan
from guestwire.ports.pinning import pinning_obstacle
from guestwire.ports.registration import (
    RELEASE_SECONDS,
    QueueBusyError,
    Registration,
    queue_busy,
)
from guestwire.ports.stand_ins import StandIn, describe, open_all, share_out
from guestwire.ports.tap import TapControl
from guestwire.ports.xdp_facts import BOUNCE_FRAMES, buffers_needed, gather, rx_ring_size, why_copies
from guestwire.ports.xdp_interface import Claim, SharedInterface
from guestwire.ports.xdp_options import XdpOptions
from guestwire.virtio.features import Feature

log = logging.getLogger(__name__)

LONGEST_RELEASE_SECONDS = 0.25
RING_ENTRIES = 2048  # of each AF_XDP ring, unless a virtqueue is larger
MOST_PIECES = 17  # of a sent frame in copy mode: the kernel takes 18 descriptors


@dataclasses.dataclass(slots=True)
class _Prepared:
    """The plans for a queue pair, and a registration for the first of them if it could be made already."""

    plans: list[Plan]
    registration: Registration | None = None

    def close(self) -> None:
        if self.registration is not None:
            self.registration.close()


@dataclasses.dataclass(slots=True)
class _Attached:
    """A queue pair's share of the port."""

    queue: int
    registration: Registration
    port: XdpPort
    note: str
    reserve: int
    covers: tuple[int, ...]
    stand_ins: list[StandIn]

    @property
    def plan(self) -> Plan:
        return self.registration.plan

    @property
    def sockets(self) -> list[tuple[int, Registration]]:
        """Its sockets, with the queue that each is bound to."""
        return [
            (self.queue, self.registration),
            *((stand_in.queue, stand_in.registration) for stand_in in self.stand_ins),
        ]


class XdpControl:
    """A network interface, driven through AF_XDP.

    Args:
        interface: its name, in the network namespace of this process.
        options: which queues, and how.
        budget: what may be pinned for the guest; without one, any amount.
        guest: what the guest is called.
    """

    # Of all ports of this process: that which a guest leaves is still charged for its memory for a moment.
    _closed_at = -RELEASE_SECONDS

    def __init__(
        self,
        interface: str,
        options: XdpOptions | None = None,
        *,
        budget: GuestBudget | None = None,
        guest: str = "",
    ) -> None:
        self.name = interface
        self.options = options = options or XdpOptions()
        self._budget = GuestBudget.unlimited() if budget is None else budget
        self.max_queue_pairs = 64
        self.bounce_frames = RING_ENTRIES if options.mode == "bounce" else BOUNCE_FRAMES
        self.mtu = 0
        self.poll_us = POLL_US
        # A NIC may finish out of order, and the kernel puts back buffers of frames that it drops.
        self.in_order = False
        self.offloads = options.features
        self._interface: Interface | None = None
        self._gone = False
        self._guest = guest
        self._shared: SharedInterface | None = None
        self._claim: Claim | None = None
        self._steering: FlowSteering | None = None
        self._filter: AddressFilter | None = None
        self._queues = range(0)
        self._multi_buffer = False
        self._prepared: dict[int, _Prepared] = {}
        self._attached: dict[int, _Attached] = {}
        self._covers: dict[int, tuple[int, ...]] = {}  # by pair: those whose frames it takes
        self._past: dict[str, int] = {}
        self.trouble: str | None = None

    # --- the port's life -----------------------------------------------------------------------------

    def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
        """Take the interface: check it and attach the XDP program, unless another guest has done so.

        Raises:
            GuestwireError: there is no such interface or queue, it carries the host's default route, its
                frames do not fit, another guest has the queue, the mode asked for by name is not to be had,
                or the kernel refuses.
        """
        interface = Interface.open(self.name)
        queues = range(self.options.queue, self.options.queue + queue_pairs)
        for queue in queues:
            interface.require_queue(queue)
        self._multi_buffer = self._require_sockets()
        busy_polling.require_what_is_asked(self.options)
        require(
            check_link(interface),
            check_default_route(interface),
            check_mtu(interface, self._largest_mtu),
        )
        if isinstance(leaving, TapControl) and leaving.takes_along(interface.index):
            raise HostError(
                f"interface {interface.name} goes with the guest's present port, which has made it",
                f"ip tuntap add dev {interface.name} mode tap, before that port is opened",
            )
        self._interface, self._gone, self._queues, self.name = interface, False, queues, interface.name
        self.mtu = interface.mtu
        self._claim = Claim(self._guest, queues, self.options.steer)
        self._shared = SharedInterface.join(
            interface,
            self._claim,
            # Software interfaces let their MTU be raised as long as the program accepts any frame.
            multi_buffer=self._multi_buffer and (interface.kind is not None or self._spans(interface)),
        )
        self._require_free_queues(self._shared, self._claim)
        if self.options.steer is not None:
            require_steerable(interface, queues, self.options.steer, self._steering_of(leaving))
        if self.options.mode != "auto":
            self._plans(None, Feature(0))
        steer = self.options.steer
        self._filter = AddressFilter(self.name, interface.index, _octets(steer) if steer else None)
        if self._program.mode_reason:
            log.info("%s: generic XDP: %s", self.name, self._program.mode_reason)
        for check in (check_checksum(interface), check_vlan(interface)):
            if check.status is not Status.OK:
                log.warning("%s: %s: %s; %s", self.name, check.found, check.meaning, check.remedy)

    def _require_free_queues(self, shared: SharedInterface, claim: Claim) -> None:
        """Make sure that no other program has a socket on a queue, as far as the kernel can say."""
        assert self._interface is not None
        for queue in self._queues:
            # A guest that changes ports may have the queue for itself.
            if shared.is_taken(queue, beside=claim):
                continue
            with contextlib.suppress(OSError):
                wait_until_released(self._interface.index, queue, timeout_s=RELEASE_SECONDS)
                if socket_on_queue(self._interface.index, queue):
                    raise queue_busy(self.name, queue)

    def configure(self, leaving: Port | None = None) -> None:
        """Lead the guest's frames to its queues, if that is asked for.

        Raises:
            GuestwireError: the driver refuses, or the queues would be shared nevertheless.
        """
        steer = self.options.steer
        if (before := self._steering_of(leaving)) is not None:
            assert isinstance(leaving, XdpControl)
            leaving._steering = None
            if steer == before.mac and self._queues == before.queues:
                self._steering = before
                return
            before.close()
        if steer is not None and self._steering is None:
            assert self._interface is not None
            self._steering = FlowSteering(self._interface, self._queues, steer)

    def _steering_of(self, leaving: Port | None) -> FlowSteering | None:
        """Return the steering of a port on the same interface that the guest leaves for this one."""
        if isinstance(leaving, XdpControl) and leaving._shared is self._shared:
            return leaving._steering
        return None

    @property
    def _program(self) -> XdpProgram:
        assert self._shared is not None, "the port is not open"
        return self._shared.program

    @property
    def _largest_mtu(self) -> int:
        return geometry.largest_mtu(multi_buffer=self._multi_buffer)

    @staticmethod
    def _spans(interface: Interface) -> bool:
        return geometry.copy_mode(interface.mtu).several_buffers

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
        self.forget()
        if self._filter is not None:
            self._filter.close()
            self._filter = None
        if self._shared is not None and self._claim is not None:
            self._shared.leave(self._claim)
            self._shared = None
        if self._steering is not None:
            self._steering.close()
            self._steering = None

    # --- a queue pair's attachment -------------------------------------------------------------------

    def prepare(self, pair: int, window: Window, queue_size: int, features: Feature) -> None:
        """Register a window that the queue pair will be attached with next, while it is still attached.

        What cannot be done now, for want of memory that is pinned twice meanwhile, is left to `attach`.
        """
        if (earlier := self._prepared.pop(pair, None)) is not None:
            earlier.close()
        plans = self._plans(window, features)
        self._prepared[pair] = prepared = _Prepared(plans)
        try:
            prepared.registration = self._register(pair, window, plans[0], queue_size)
        except GuestwireError:
            if len(plans) == 1:
                self._require_pinnable(window, plans[0])

    def _require_pinnable(self, window: Window, plan: Plan) -> None:
        """Make sure that the prepared pairs can be registered so once the guest's present ones are not."""
        obstacle = pinning_obstacle(
            window.size if plan.pins else window.size - window.bounce_offset,
            plan.geometry.chunk,
            registrations=len(self._prepared),
            machine_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            locked_limit=locked_memory_limit(HostCapabilities.read()),
            budget=self._budget.most,
        )
        if obstacle is not None:
            raise HostError(
                f"interface {self.name} cannot do mode={plan.mode}: {obstacle.why}", obstacle.remedy
            )

    def attach(
        self, pair: int, window: Window, queue_size: int, features: Feature
    ) -> guestwire.datapath.port.Port:
        """Bind a socket for the queue pair in the best mode there is.

        Raises:
            GuestwireError: no mode that was asked for works; the message says why.
        """
        assert self._interface is not None
        prepared = self._prepared.pop(pair, None)
        registered = prepared.registration if prepared is not None else None
        if registered is not None and registered.window is not window:
            registered.close()
            registered = prepared = None
        plans = self._plans(window, features) if prepared is None else prepared.plans
        failures: list[str] = []
        while True:
            plan = plans.pop(0)
            plan = dataclasses.replace(plan, reason="; ".join(filter(None, (plan.reason, *failures))))
            try:
                registration = registered or self._register(pair, window, plan, queue_size)
                registered = None
                self._bind(registration, plan)
                break
            except GuestwireError as error:
                if not plans or isinstance(error, QueueBusyError):
                    raise
                failures.append(f"{plan.mode}: {error}")
        stand_ins: list[StandIn] = []
        try:
            reserve = buffers_needed(self._interface, registration.plan)
            polls, why_not = busy_polling.set_up(registration, self._interface, self.options)
            why_copied = why_copies(self._interface, registration, queue_size, reserve)
            note = "; ".join(filter(None, (why_copied, why_not)))
            covers = self._covers.get(pair, ())
            stand_ins = self._open_stand_ins(covers, window)
            port = self._port(pair, window, registration, reserve, stand_ins, busy_poll=polls)
        except BaseException:
            for each in (registration, *(stand_in.registration for stand_in in stand_ins)):
                each.close()
            raise
        attached = _Attached(self._queues[pair], registration, port, note, reserve, covers, stand_ins)
        self._attached[pair] = attached
        reason = "; ".join(filter(None, (plan.reason, attached.note)))
        log.info("%s queue %d: %s mode%s", self.name, attached.queue, plan.mode, reason and f" ({reason})")
        return port

    def cover(self, working: Collection[int]) -> Sequence[int]:
        """Share out the queues of the pairs that are not at work."""
        self._covers = share_out(len(self._queues), working)
        return [
            pair for pair, attached in self._attached.items() if attached.covers != self._covers.get(pair, ())
        ]

    def uncover(self, pair: int) -> Sequence[int]:
        """Give a pair its queue back."""
        self._covers = {
            taker: tuple(other for other in covered if other != pair)
            for taker, covered in self._covers.items()
        }
        return [taker for taker, attached in self._attached.items() if pair in attached.covers]

    def _open_stand_ins(self, covers: Sequence[int], window: Window) -> list[StandIn]:
        assert self._interface is not None
        return open_all(
            self._interface,
            window,
            [(self._queues[pair], self._bounce_frames(pair, window)) for pair in covers],
            budget=self._budget,
            released_at=self._closed_at,
        )

    def _bounce_frames(self, pair: int, window: Window) -> range:
        """Return where a pair's share of the bounce frames lies in a window."""
        size = self.bounce_frames * geometry.FRAME_BYTES
        start = window.bounce_offset + pair * size
        return range(start, start + size)

    def forget(self) -> None:
        """Unpin what was prepared and not attached."""
        while self._prepared:
            self._prepared.popitem()[1].close()

    def _bind(self, registration: Registration, plan: Plan) -> None:
        assert self._interface is not None
        registration.plan = plan
        try:
            registration.bind(self._interface.index)
        except BaseException:
            registration.close()
            raise

    def _register(self, pair: int, window: Window, plan: Plan, queue_size: int) -> Registration:
        assert self._interface is not None
        entries = max(RING_ENTRIES, 1 << (queue_size - 1).bit_length())  # a packed ring's may be any number
        return Registration(
            window,
            plan,
            self.name,
            self._queues[pair],
            ring_size=entries,
            rx_size=rx_ring_size(self._interface, plan) or entries,
            budget=self._budget,
            released_at=self._closed_at,
        )

    def _port(
        self,
        pair: int,
        window: Window,
        registration: Registration,
        reserve: int,
        stand_ins: Sequence[StandIn],
        *,
        busy_poll: bool,
    ) -> XdpPort:
        assert self._interface is not None
        plan, source = registration.plan, self.options.source
        return XdpPort(
            registration.socket,
            bounce_offset=self._bounce_frames(pair, window).start,
            bounce_frames=self.bounce_frames,
            room_needed=plan.geometry.room_needed,
            longest_frame=plan.geometry.longest_frame,
            # In zero-copy mode a socket that may send a frame in several pieces would get received ones so,
            # too, and the kernel would keep its books on the pieces in the guest's memory.
            most_pieces=MOST_PIECES if self._multi_buffer and plan.mode == "direct" else 1,
            reserve=reserve,
            copy_headers=self.options.copies_headers,
            source=None if source is None else _octets(source),
            several_buffers=plan.geometry.several_buffers,
            finish_checksums=plan.mode != "zero-copy"
            and hands_over_unfinished_checksums(self._interface, self._program.mode == "generic"),
            merge=self.options.gro,
            in_place_from=0 if self.options.payload == "in-place" else plan.geometry.chunk + 1,
            busy_poll=busy_poll,
            stand_ins=[stand_in.for_port for stand_in in stand_ins],
        )

    def _plans(self, window: Window | None, features: Feature) -> list[Plan]:
        assert self._interface is not None
        require(check_mtu(self._interface, self._largest_mtu))
        facts = gather(self._interface, self._program, self.options, self._queues, window, features)
        if self.options.steer is not None and self._steering is None:
            # `configure` is still to come, and makes sure of that.
            facts = dataclasses.replace(facts, shared_reason=None)
        return modes.plans(self.options.mode, facts)

    def resume(self, pair: int) -> None:
        """Send the queue's frames to the socket, and those of the queues that the pair covers."""
        for queue, registration in self._attached[pair].sockets:
            self._program.set_socket(queue, registration.socket.fd)

    def quiesce(self, pair: int) -> None:
        """Let the queue's frames pass to the host's network stack again."""
        attached = self._attached.get(pair)
        if attached is not None:
            for queue, _ in attached.sockets:
                # The kernel takes the entry out by itself when the interface goes away.
                with contextlib.suppress(GuestwireError, OSError):
                    self._program.clear_socket(queue)

    def detach(self, pair: int) -> None:
        """Close the queue pair's sockets."""
        attached = self._attached.pop(pair, None)
        if attached is None:
            return
        self._count(attached, self._past)
        attached.port.close()
        for _, registration in attached.sockets:
            registration.close()
        XdpControl._closed_at = time.monotonic()
        if attached.plan.mode == "zero-copy" and self._interface is not None:
            # close() returns before the NIC has let go: until then it may write into the guest's buffers.
            self._wait_until_released(attached.queue)

    def _wait_until_released(self, queue: int) -> None:
        assert self._interface is not None
        try:
            released = wait_until_released(self._interface.index, queue, timeout_s=RELEASE_SECONDS)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # the interface is gone, and its NIC writes nowhere
            released = False
        if not released:
            # A kernel before 6.14 cannot say: the longest time that was ever measured, several times over.
            time.sleep(LONGEST_RELEASE_SECONDS)

    def announce(self, mac: bytes) -> None:
        """Send a gratuitous RARP from the interface.

        Raises:
            HostError: the guest may not send from that address; or the kernel refuses.
        """
        require_source(self.options.source, mac)
        send_rarp(self.name, mac)

    # --- what it says of itself ----------------------------------------------------------------------

    @staticmethod
    def _count(attached: _Attached, into: dict[str, int]) -> None:
        for _, registration in attached.sockets:
            with contextlib.suppress(OSError, ValueError):
                for name, value in registration.socket.statistics().items():
                    into[name] = into.get(name, 0) + value

    def status(self) -> PortStatus:
        """Describe the port: of several queue pairs, with the least of their modes."""
        kernel = dict(self._past)
        attached = list(self._attached.values())
        for one in attached:
            self._count(one, kernel)
        if not attached:
            return PortStatus(
                "xdp", self.name, None, "no guest is attached", 0, kernel, asked_mode=self.options.mode
            )
        least = max(attached, key=lambda one: MODES.index(one.plan.mode))
        covered = describe([stand_in for one in attached for stand_in in one.stand_ins])
        reason = "; ".join(filter(None, (least.plan.reason, least.note, covered))) or None
        pinned = sum(registration.pinned_bytes for one in attached for _, registration in one.sockets)
        return PortStatus(
            "xdp", self.name, least.plan.mode, reason, pinned, kernel, asked_mode=self.options.mode
        )

    # --- the interface's link ------------------------------------------------------------------------

    @property
    def interface_index(self) -> int | None:
        """The interface's number, if it is open."""
        return None if self._interface is None else self._interface.index

    @property
    def link_up(self) -> bool:
        """Whether the interface was up, with a carrier, and had our program, when it was last looked at."""
        interface = self._interface
        return interface is not None and interface.up and interface.carrier and self.trouble is None

    @property
    def gone(self) -> bool:
        """Whether the interface was no more when it was last looked at."""
        return self._gone

    @property
    def disturbed(self) -> bool:
        """Whether somebody has taken the XDP program off, by force (BPF_LINK_DETACH)."""
        shared = self._shared
        return shared is not None and not self._gone and not shared.attached

    def _mend(self) -> None:
        """Put the XDP program back if somebody has taken it off, or say why that cannot be."""
        if self._shared is None:
            return
        try:
            self._shared.attach_again(self.name)
        except HostError as error:
            why = f"somebody has taken the XDP program off: {error}"
            if why != self.trouble:
                log.error("%s: %s; %s", self.name, why, error.remedy)
            self.trouble = why
        else:
            self.trouble = None

    def refresh(self) -> bool:
        """Look at the interface again, under the name that it has now.

        Returns:
            whether the pairs must be attached anew: the MTU has changed, so that frames must be laid out
            otherwise, or the NIC's ring has grown beyond what the reserve covers.
        """
        assert self._interface is not None
        try:
            interface = Interface.open(if_indextoname(self._interface.index))
        except (GuestwireError, OSError):
            # It may be taken away between two looks.
            if is_there(self._interface.index):
                raise
            interface = None
        if interface is None or interface.index != self._interface.index:
            self._gone = True
            self._interface = dataclasses.replace(self._interface, up=False, carrier=False)
            return False
        self._interface, self.name = interface, interface.name
        self._mend()
        starved = any(
            buffers_needed(interface, one.plan) > one.reserve
            for one in self._attached.values()
            if one.reserve
        )
        if self._interface.mtu == self.mtu:
            return starved
        mtu_fits = check_mtu(self._interface, self._largest_mtu)
        if mtu_fits.status is Status.PROBLEM:
            log.warning("%s: MTU %s: %s; %s", self.name, mtu_fits.found, mtu_fits.meaning, mtu_fits.remedy)
            # Without that trust, all buffers hold what the NIC may write, whatever the MTU.
            return self.options.trust_mtu
        self.mtu = self._interface.mtu
        return True


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))

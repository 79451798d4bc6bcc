"""What each request means: the state of one session, and its effects on the device.

One method for each request, found by the table in `Backend.__init__`.  A method returns the reply
that the request has of its own, if it has one, and raises `FrontendError` if the frontend may not
do this, or whatever the device raises; then nothing has changed, except that a disabled ring in the
way may have been stopped.

Source: QEMU, docs/interop/vhost-user.rst, "Front-end message types".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from guestwire.errors import FrontendError, GuestwireError
from guestwire.vhost_user.constants import (
    MAX_MEMORY_SLOTS,
    MAX_MEMORY_TABLE_REGIONS,
    ConfigFlag,
    ProtocolFeature,
    Request,
)
from guestwire.vhost_user.descriptor import FileDescriptor, close_all, require_signal
from guestwire.vhost_user.device import Device
from guestwire.vhost_user.memory import GuestMemory, MemoryRegion
from guestwire.vhost_user.payloads import (
    U64,
    Announcement,
    Config,
    Empty,
    MemoryTable,
    Payload,
    RingAddress,
    RingDescriptor,
    RingState,
    SingleRegion,
)
from guestwire.vhost_user.rings import Rings
from guestwire.vhost_user.state import RULES, SPOKEN
from guestwire.virtio.features import DeviceStatus, Feature, names, never_offered
from guestwire.virtio.net_config import MTU_RANGE


class Backend:
    """The state that one session has built up, and the device behind it.

    Args:
        device: what the requests act on.
        refused: is told of an error that a request's own reply hides.

    Attributes:
        features: what the driver accepted; None before SET_FEATURES and after a reset.
        protocol_features: what the frontend accepted.
        status: the device status, if the frontend tells it.
        memory: the guest's memory.
        rings: the rings.
        channel: where to send requests to the frontend; None if it gave no such descriptor.
    """

    def __init__(self, device: Device, refused: Callable[[GuestwireError], None]) -> None:
        self._device = device
        self._refused = refused
        self._offered = Feature(device.offered_features())
        self._offered_protocol = ProtocolFeature(device.offered_protocol_features()) & SPOKEN
        self.features: Feature | None = None
        self.protocol_features = ProtocolFeature(0)
        self.status = DeviceStatus(0)
        self.memory = GuestMemory()
        self.rings = Rings(device)
        self.channel: FileDescriptor | None = None
        self._descriptors: list[FileDescriptor] = []
        self._methods: dict[Request, Callable[[Any], Payload | None]] = {
            Request.GET_FEATURES: self._get_features,
            Request.SET_FEATURES: self._set_features,
            Request.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.SET_OWNER: self._set_owner,
            Request.RESET_OWNER: self._reset_owner,
            Request.RESET_DEVICE: self._reset_device,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: self._get_status,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            Request.ADD_MEM_REG: self._add_mem_reg,
            Request.REM_MEM_REG: self._rem_mem_reg,
            Request.GET_QUEUE_NUM: self._get_queue_num,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.GET_CONFIG: self._get_config,
            Request.SET_CONFIG: self._set_config,
            Request.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            Request.NET_SET_MTU: self._net_set_mtu,
            Request.SEND_RARP: self._send_rarp,
        }

    def why_illegal(self, request: Request) -> str | None:
        """Return why the frontend may not send this request now, or None if it may."""
        rule = RULES[request]
        bit = Feature.VHOST_USER_F_PROTOCOL_FEATURES
        if rule.protocol and bit not in self._offered:
            return f"{bit.name} was not offered"
        if rule.offered not in self._offered_protocol:
            return f"VHOST_USER_PROTOCOL_F_{rule.offered.name} was not offered"
        if rule.negotiated not in self.protocol_features:
            return f"VHOST_USER_PROTOCOL_F_{rule.negotiated.name} was not negotiated"
        return None

    def act(self, request: Request, payload: Payload, descriptors: list[FileDescriptor]) -> Payload | None:
        """Do what a request says, and start the rings of which all is known then.

        Args:
            request: a legal one.
            payload: its payload.
            descriptors: what came with it; those that are kept are taken out of the list.
        """
        self._descriptors = descriptors
        if RULES[request].ring_stopped:
            assert isinstance(payload, RingState)
            self.rings.require_stopped(payload.index)
        reply = self._methods[request](payload)
        if self._driver_ready():
            self.rings.start_ready(self.memory)
        return reply

    def close(self) -> None:
        """Stop every ring, take the memory from the device, close everything."""
        with ExitStack() as steps:  # in reverse, and each of them even if another fails
            steps.callback(self._close_descriptors)
            steps.callback(self._device.set_memory, ())
            steps.callback(self._device.reset)
            steps.callback(self.rings.reset)

    def _close_descriptors(self) -> None:
        self.rings.close()
        close_all(self.channel, *(region.descriptor for region in self.memory))
        self.channel, self.memory = None, GuestMemory()

    def _driver_ready(self) -> bool:
        """Tell whether rings may run.

        "The device MUST NOT consume buffers [...] before DRIVER_OK" (virtio 1.3, 2.1.2).  QEMU and
        DPDK set it after they have set up the rings.  A frontend that does not tell the status sets
        up its rings when the driver is ready.
        """
        if self.features is None:
            return False
        if ProtocolFeature.STATUS not in self.protocol_features:
            return True
        return DeviceStatus.DRIVER_OK in self.status

    # Features and status

    def _get_features(self, _: Empty) -> U64:
        return U64(self._offered)

    def _set_features(self, accepted: U64) -> None:
        unoffered = never_offered(accepted.value, self._offered)
        if unoffered:
            raise FrontendError(
                f"features that were never offered: {', '.join(names(unoffered))}",
                "switch them off in the frontend (QEMU: mrg_rxbuf=off and the like on -device)",
            )
        features = Feature(accepted.value)
        if features != self.features:
            logging_only = features ^ (self.features or 0) == Feature.VHOST_F_LOG_ALL
            if self.features is None or not logging_only:
                self.rings.require_all_stopped()
            self._device.set_features(features)
            self.features = features
            self.rings.set_kind(packed=Feature.VIRTIO_F_RING_PACKED in features)
        if Feature.VHOST_USER_F_PROTOCOL_FEATURES not in features:
            # "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly
            # in the enabled state."
            self.rings.enable_all(True)

    def _get_protocol_features(self, _: Empty) -> U64:
        return U64(self._offered_protocol)

    def _set_protocol_features(self, accepted: U64) -> None:
        # int, because the complement of a set of flags lacks the bits that have no name.
        unoffered = accepted.value & ~int(self._offered_protocol)
        if unoffered:
            listed = ", ".join(names(unoffered, ProtocolFeature))
            raise FrontendError(f"protocol features that were never offered: {listed}")
        self.protocol_features = ProtocolFeature(accepted.value)

    def _set_owner(self, _: Empty) -> None:
        """A session has one frontend, who is its owner from the start."""

    def _reset_owner(self, _: Empty) -> None:
        # "It is recommended that back-ends either ignore this message, or use it to disable all
        # rings."
        self.rings.enable_all(False)

    def _reset_device(self, _: Empty) -> None:
        self._reset()

    def _set_status(self, status: U64) -> None:
        if status.value > 0xFF:
            raise FrontendError(f"status {status.value:#x}, it has 8 bits")
        if status.value == 0:
            self._reset()
        else:
            self._device.set_status(status.value)
            self.status = DeviceStatus(status.value)

    def _get_status(self, _: Empty) -> U64:
        return U64(self.status)

    def _reset(self) -> None:
        """Go back to where the driver begins anew; what the frontend has set up stays.

        The memory stays in particular: QEMU with CONFIGURE_MEM_SLOTS remembers which regions it has
        added in this session, and never adds them again.
        """
        self.rings.reset()
        self._device.reset()
        self.features, self.status = None, DeviceStatus(0)

    # Memory

    def _set_mem_table(self, table: MemoryTable) -> None:
        memory = GuestMemory()
        for region, descriptor in zip(table.regions, self._descriptors, strict=True):
            memory = memory.with_region(MemoryRegion.of(region, descriptor), MAX_MEMORY_TABLE_REGIONS)
        replaced = self.memory
        self._set_memory(memory)
        self._descriptors.clear()
        close_all(*(region.descriptor for region in replaced))

    def _get_max_mem_slots(self, _: Empty) -> U64:
        return U64(MAX_MEMORY_SLOTS)

    def _add_mem_reg(self, added: SingleRegion) -> None:
        region = MemoryRegion.of(added.region, self._descriptors[0])
        # QEMU (seen of 7.2) adds each region once for each queue pair, and removes it as often.
        if (repeated := self.memory.with_repeated(region)) is not None:
            self.memory = repeated
            return
        self._set_memory(self.memory.with_region(region, MAX_MEMORY_SLOTS))
        self._descriptors.clear()

    def _rem_mem_reg(self, removed: SingleRegion) -> None:
        memory, region = self.memory.without(removed.region)
        if region is None:
            self.memory = memory
            return
        self._set_memory(memory)
        close_all(region.descriptor)

    def _set_memory(self, memory: GuestMemory) -> None:
        self.rings.fit_into(memory)
        self._device.set_memory(memory.regions)
        self.memory = memory

    # Rings

    def _get_queue_num(self, _: Empty) -> U64:
        # "How many queues the back-end supports."  Cloud Hypervisor counts rings here and refuses
        # to start with fewer than it has; QEMU counts queue pairs, and learns only from the error
        # for a ring that is not there if it has too many.
        return U64(len(self.rings))

    def _set_vring_num(self, state: RingState) -> None:
        self.rings.set_size(state.index, state.num)

    def _set_vring_addr(self, addresses: RingAddress) -> None:
        self.rings.set_addresses(addresses, Feature.VHOST_F_LOG_ALL in self._offered)

    def _set_vring_base(self, state: RingState) -> None:
        self.rings.set_base(state.index, state.num)

    def _get_vring_base(self, state: RingState) -> RingState:
        return RingState(state.index, self.rings.stop(state.index))

    def _set_vring_kick(self, ring: RingDescriptor) -> None:
        self.rings.set_kick(ring.index, self._descriptors[0] if ring.has_descriptor else None)
        self._descriptors.clear()

    def _set_vring_call(self, ring: RingDescriptor) -> None:
        self.rings.set_call(ring.index, self._descriptors[0] if ring.has_descriptor else None)
        self._descriptors.clear()

    def _set_vring_err(self, ring: RingDescriptor) -> None:
        self.rings.set_error(ring.index, self._descriptors[0] if ring.has_descriptor else None)
        self._descriptors.clear()

    def _set_vring_enable(self, state: RingState) -> None:
        if state.num > 1:
            raise FrontendError(f"ring {state.index}: {state.num} is neither enabled nor disabled")
        self.rings.enable(state.index, bool(state.num))

    # Configuration

    def _get_config(self, wanted: Config) -> Payload:
        try:
            data = self._device.read_config(wanted.offset, len(wanted.data))
        except GuestwireError as error:
            # "Vhost-user back-end uses zero length of payload to indicate an error."
            self._refused(error)
            return Empty()
        return Config(wanted.offset, wanted.flags, data)

    def _set_config(self, written: Config) -> None:
        try:
            flag = ConfigFlag(written.flags)
        except ValueError:
            raise FrontendError(f"unknown flags {written.flags:#x}") from None
        self._device.write_config(written.offset, written.data, flag)

    def _set_backend_req_fd(self, _: Empty) -> None:
        require_signal(self._descriptors[0])
        close_all(self.channel)
        self.channel = self._descriptors.pop()

    def _net_set_mtu(self, mtu: U64) -> None:
        if mtu.value not in MTU_RANGE:
            raise FrontendError(
                f"MTU {mtu.value}, it must be {MTU_RANGE[0]} to {MTU_RANGE[-1]}",
                "set the MTU in the frontend (QEMU: host_mtu= on -device virtio-net-pci)",
            )
        self._device.set_mtu(mtu.value)

    def _send_rarp(self, announcement: Announcement) -> None:
        if announcement.mac[0] & 1:
            raise FrontendError(f"{announcement.mac.hex(':')} is a group's address, not a guest's")
        self._device.announce(announcement.mac)

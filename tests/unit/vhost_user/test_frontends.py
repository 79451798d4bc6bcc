"""How known frontends set a device up, from their sources: each must get its rings running."""

import os
import struct

import pytest

from guestwire.vhost_user.constants import MessageFlag, ProtocolFeature, Request
from guestwire.vhost_user.messages import (
    U64,
    Config,
    Empty,
    Header,
    MemoryTable,
    Region,
    RingAddress,
    RingDescriptor,
    RingState,
    SingleRegion,
)
from guestwire.vhost_user.state import SPOKEN
from guestwire.virtio.features import DeviceStatus
from unit.vhost_user.fakes import MEMORY, OFFERED

START = MEMORY.user_address


def addresses(index: int, log: int = 0) -> RingAddress:
    start = START + index * 0x10000
    return RingAddress(index, 0, start, start + 0x8000, start + 0x4000, log)


def user_mode_linux_virtqueues(frontend, acknowledged):
    """vu_find_vqs() in Linux' arch/um/drivers/virtio_uml.c, every request with NEED_REPLY."""
    body = MemoryTable((MEMORY,)).encode() + Region(0, 0, 0, 0).encode()
    flags = MessageFlag.NEED_REPLY
    reply = frontend.transmit(
        Header(Request.SET_MEM_TABLE, flags, len(body)).encode() + body, [frontend.memfd()]
    )
    assert reply.endswith(struct.pack("=Q", 0))
    for index in range(2):
        reading, writing = os.pipe()
        frontend.own(reading)
        frontend.own(writing)
        acknowledged(Request.SET_VRING_CALL, RingDescriptor(index), writing)
        acknowledged(Request.SET_VRING_NUM, RingState(index, 256))
        acknowledged(Request.SET_VRING_BASE, RingState(index, 0))
        acknowledged(Request.SET_VRING_ADDR, addresses(index, log=2**64 - 1))
    for index in range(2):
        acknowledged(Request.SET_VRING_KICK, RingDescriptor(index), frontend.eventfd())
        acknowledged(Request.SET_VRING_ENABLE, RingState(index, 1))


def test_user_mode_linux(frontend, device):
    def acknowledged(*message):
        assert frontend.acknowledged(*message)

    frontend.send(Request.SET_OWNER)
    assert frontend.get(Request.GET_FEATURES) == OFFERED
    wanted = ProtocolFeature(frontend.get(Request.GET_PROTOCOL_FEATURES)) & (
        ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG | ProtocolFeature.MQ
    )
    acknowledged(Request.SET_PROTOCOL_FEATURES, U64(wanted))
    reading, writing = os.pipe()
    frontend.own(reading)
    frontend.own(writing)
    acknowledged(Request.SET_BACKEND_REQ_FD, Empty(), writing)
    mac = frontend.send(Request.GET_CONFIG, Config(0, 0, bytes(6)))
    assert mac.data == device.config.mac
    acknowledged(Request.SET_FEATURES, U64(OFFERED))
    user_mode_linux_virtqueues(frontend, acknowledged)
    assert sorted(device.running) == [0, 1]
    assert all(ring.enabled for ring in device.running.values())

    # vu_del_vqs(), when the driver is bound anew: it disables the rings, and that is all.
    for index in (1, 0):
        acknowledged(Request.SET_VRING_ENABLE, RingState(index, 0))
    frontend.get(Request.GET_FEATURES)
    acknowledged(Request.SET_FEATURES, U64(OFFERED))
    user_mode_linux_virtqueues(frontend, acknowledged)
    assert sorted(device.running) == [0, 1]
    assert device.named("stop_ring") == [[0], [1]]


def qemu_start(frontend, pairs):
    """vhost_net_start() of QEMU 10.0 with as many queue pairs, each of them a vhost_dev."""
    for pair in range(pairs):
        frontend.send(Request.SET_FEATURES, U64(OFFERED))
        status = frontend.get(Request.GET_STATUS)
        frontend.send(Request.SET_STATUS, U64(status | DeviceStatus.FEATURES_OK))
        if pair == 0 and not frontend.device.memory:
            # With CONFIGURE_MEM_SLOTS only what is new since the last time in this session.
            assert frontend.acknowledged(Request.ADD_MEM_REG, SingleRegion(MEMORY), frontend.memfd())
        for index in (2 * pair, 2 * pair + 1):
            frontend.send(Request.SET_VRING_NUM, RingState(index, 256))
            frontend.send(Request.SET_VRING_BASE, RingState(index, 0))
            frontend.send(Request.SET_VRING_ADDR, addresses(index))
            frontend.send(Request.SET_VRING_KICK, RingDescriptor(index), frontend.eventfd())
            frontend.send(Request.SET_VRING_CALL, RingDescriptor(index), frontend.eventfd())
        if pair == pairs - 1:
            status = frontend.get(Request.GET_STATUS)
            frontend.send(
                Request.SET_STATUS,
                U64(status | DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.DRIVER_OK),
            )
    for index in range(2 * pairs):
        frontend.acknowledged(Request.SET_VRING_ENABLE, RingState(index, int(index < 2)))


def qemu_10_stop(frontend, pairs):
    """vhost_net_stop() of QEMU 10.0."""
    for index in range(2 * pairs):
        reply = frontend.send(Request.GET_VRING_BASE, RingState(index, 0))
        assert reply == RingState(index, 5)
    frontend.send(Request.SET_STATUS, U64(0))


def qemu_7_stop(frontend, pairs):
    """vhost_net_stop() of QEMU 7.2: the last pair's status goes to 0 before its rings stop."""
    for pair in range(pairs):
        if pair == pairs - 1:
            frontend.send(Request.SET_STATUS, U64(0))
        for index in (2 * pair, 2 * pair + 1):
            reply = frontend.send(Request.GET_VRING_BASE, RingState(index, 0))
            assert reply == RingState(index, 5)


@pytest.mark.parametrize("qemu_stop", [qemu_10_stop, qemu_7_stop])
def test_qemu_with_two_queue_pairs(frontend, device, qemu_stop):
    device.consumed = 5
    for pair in range(2):
        frontend.get(Request.GET_FEATURES)
        offered = frontend.get(Request.GET_PROTOCOL_FEATURES)
        frontend.send(Request.SET_PROTOCOL_FEATURES, U64(offered & ~int(ProtocolFeature.CONFIG)))
        if pair == 0:
            assert frontend.get(Request.GET_QUEUE_NUM) >= 2
        frontend.get(Request.GET_MAX_MEM_SLOTS)
        if pair == 0:
            assert frontend.acknowledged(Request.SET_BACKEND_REQ_FD, Empty(), frontend.eventfd())
            frontend.send(Request.SET_OWNER)
        frontend.get(Request.GET_FEATURES)
        for index in (2 * pair, 2 * pair + 1):
            frontend.send(Request.SET_VRING_CALL, RingDescriptor(index), frontend.eventfd())
            frontend.send(Request.SET_VRING_ERR, RingDescriptor(index), frontend.eventfd())
    assert frontend.acknowledged(Request.NET_SET_MTU, U64(1500))
    for _ in range(2):  # and again after the guest has rebooted
        qemu_start(frontend, pairs=2)
        assert sorted(device.running) == [0, 1, 2, 3]
        enabled = [device.running[index].enabled for index in range(4)]
        assert enabled == [True, True, False, False]
        qemu_stop(frontend, pairs=2)
        assert device.running == {}
    assert len(device.named("set_memory")) == 1


def test_dpdk_virtio_user(frontend, device):
    """virtio_user_dev_init() and virtio_user_start_device() of DPDK 22.11, and a restart."""
    frontend.send(Request.SET_OWNER)
    frontend.get(Request.GET_FEATURES)
    offered = ProtocolFeature(frontend.get(Request.GET_PROTOCOL_FEATURES))
    frontend.send(
        Request.SET_PROTOCOL_FEATURES,
        U64(offered & (ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS)),
    )
    for _ in range(2):
        frontend.send(Request.SET_FEATURES, U64(OFFERED))
        assert frontend.acknowledged(Request.SET_STATUS, U64(0xB))
        for index in (0, 1):
            frontend.send(Request.SET_VRING_CALL, RingDescriptor(index), frontend.eventfd())
        assert frontend.acknowledged(Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), frontend.memfd())
        for index in (0, 1):
            frontend.send(Request.SET_VRING_NUM, RingState(index, 256))
            frontend.send(Request.SET_VRING_BASE, RingState(index, 0))
            frontend.send(Request.SET_VRING_ADDR, addresses(index))
            frontend.send(Request.SET_VRING_KICK, RingDescriptor(index), frontend.eventfd())
        for index in (0, 1):
            frontend.send(Request.SET_VRING_ENABLE, RingState(index, 1))
        assert frontend.acknowledged(Request.SET_STATUS, U64(0xF))
        assert [device.running[index].enabled for index in (0, 1)] == [True, True]
        for index in (0, 1):
            frontend.send(Request.SET_VRING_ENABLE, RingState(index, 0))
            frontend.send(Request.GET_VRING_BASE, RingState(index, 0))
        assert frontend.acknowledged(Request.SET_STATUS, U64(0))


def test_dpdk_virtio_user_whose_backend_comes_back(frontend, device):
    """virtio_user_dev_server_reconnect() of DPDK 22.11 stops the rings of the session before."""
    for index in (0, 1):
        frontend.send(Request.SET_VRING_ENABLE, RingState(index, 0))
    for index in (0, 1):
        reply = frontend.send(Request.GET_VRING_BASE, RingState(index, 0x55EB))
        assert reply == RingState(index, 0)
    assert device.calls == []
    test_dpdk_virtio_user(frontend, device)


def test_cloud_hypervisor(frontend, device):
    """setup_vhost_user() of virtio-devices/src/vhost_user/vu_common_ctrl.rs, and a reset."""
    frontend.send(Request.SET_OWNER)
    frontend.get(Request.GET_FEATURES)
    offered = ProtocolFeature(frontend.get(Request.GET_PROTOCOL_FEATURES))
    wanted = ProtocolFeature.MQ | ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.REPLY_ACK
    assert wanted in offered
    frontend.send(Request.SET_PROTOCOL_FEATURES, U64(wanted))
    assert frontend.get(Request.GET_QUEUE_NUM) >= 2, "it counts rings, not pairs"
    assert wanted in SPOKEN
    for _ in range(2):  # and again after a reset of the guest, which only disables the rings
        assert frontend.acknowledged(Request.SET_FEATURES, U64(OFFERED))
        assert frontend.acknowledged(Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), frontend.memfd())
        for index in (0, 1):
            assert frontend.acknowledged(Request.SET_VRING_NUM, RingState(index, 256))
        for index in (0, 1):
            assert frontend.acknowledged(Request.SET_VRING_ADDR, addresses(index))
            assert frontend.acknowledged(Request.SET_VRING_BASE, RingState(index, 0))
            for request in (Request.SET_VRING_CALL, Request.SET_VRING_KICK):
                assert frontend.acknowledged(request, RingDescriptor(index), frontend.eventfd())
        for index in (0, 1):
            assert frontend.acknowledged(Request.SET_VRING_ENABLE, RingState(index, 1))
        assert sorted(device.running) == [0, 1]
        for index in (0, 1):
            assert frontend.acknowledged(Request.SET_VRING_ENABLE, RingState(index, 0))

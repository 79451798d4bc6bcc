"""Every fault of a device is noticed by the testing driver."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from guestwire.testing import BufferLayout, DeviceError, FrameStream, VerificationError
from guestwire.virtio.features import Feature
from guestwire.virtio.segmentation import NetHeader
from unit.testing.machine import HEADER, INDIRECT, MERGEABLE, VERSION_1, Machine, machine

# Faults of the device: frames.


def receive_two(m: Machine, first: bytes, second: bytes, stream: FrameStream) -> None:
    m.pair.receive_ring.post()
    m.deliver(bytes(HEADER) + first)
    m.deliver(bytes(HEADER) + second)
    m.call(m.receive)
    m.pair.receive_stream(stream, 2, timeout=0.5)


@pytest.mark.parametrize("layout", [BufferLayout(), BufferLayout(length=100)], ids=["one", "many"])
def test_a_frame_changed(layout: BufferLayout) -> None:
    stream = FrameStream(200)
    with machine(receive_layout=layout) as m:
        changed = bytearray(stream.frame(1))
        changed[150] ^= 0x40
        wrong, right = changed[150], stream.frame(1)[150]
        with pytest.raises(
            VerificationError,
            match=f"frame 1 of 200 bytes.*byte 150 is {wrong:#04x} instead of {right:#04x}, 1 bytes",
        ):
            receive_two(m, stream.frame(0), bytes(changed), stream)
        assert stream.received == 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 0), "frame 0 arrived again, expected was number 1"),
        ((0, 2), "frame 2 arrived where number 1 was expected: 1 were lost"),
        ((1, 0), "frame 1 arrived where number 0 was expected: 1 were lost"),
    ],
)
def test_a_frame_in_the_wrong_place(numbers: tuple[int, int], message: str) -> None:
    stream = FrameStream(200)
    with machine() as m, pytest.raises(VerificationError, match=message):
        receive_two(m, stream.frame(numbers[0]), stream.frame(numbers[1]), stream)


def test_a_frame_cut_short() -> None:
    stream = FrameStream(200)
    with machine() as m, pytest.raises(VerificationError, match="has 199 bytes instead of 200"):
        receive_two(m, stream.frame(0)[:199], stream.frame(1), stream)


def test_loss_that_is_allowed() -> None:
    stream = FrameStream(200)
    with machine() as m:
        m.pair.receive_ring.post()
        for number in (0, 3, 4):
            m.deliver(bytes(HEADER) + stream.frame(number))
        m.call(m.receive)
        traffic = m.pair.receive_stream(stream, 5, allow_loss=True)
        assert traffic[:3] == (0, 3, 2)


# Faults of the device: rings.


def u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


@dataclass
class Spoilt:
    """What a device leaves in memory: used elements, and the header in the first buffer."""

    elements: list[tuple[int, int]]
    message: str
    flags: int = 0
    num_buffers: int | None = 1
    index: int | None = None

    def write(self, m: Machine) -> None:
        raw = m.pair.receive_ring.raw
        if self.num_buffers is not None:
            address = m.pair.receive_ring.buffer_address(0)
            header = bytes([self.flags]) + bytes(9) + self.num_buffers.to_bytes(2, "little")
            m.guest.bytes[address : address + HEADER] = header
        for i, element in enumerate(self.elements):
            raw.used_ring[4 + 8 * i : 12 + 8 * i] = u32(*element)
        raw.reset_used_index(len(self.elements) if self.index is None else self.index)


FAULTS = {
    "id out of range": Spoilt([(16, 100)], "id is not the head of a chain"),
    "id far out of range": Spoilt([(1 << 31, 100)], "id is not the head of a chain"),
    "index too far": Spoilt([(0, 100)], "runs ahead", index=17),
    "too long": Spoilt([(0, 2049)], "more than the device could have written"),
    "no header": Spoilt([(0, 11)], "missing, cut short"),
    "header not written": Spoilt([(0, 100)], "missing, cut short", num_buffers=None),
    "flags": Spoilt([(0, 100)], "not negotiated", flags=1),
    "no buffers": Spoilt([(0, 100)], "num_buffers", num_buffers=0),
    "more buffers": Spoilt([(0, 2048)], "num_buffers", num_buffers=2),
    "not full": Spoilt([(0, 2047), (1, 50)], "although its buffer is not full", num_buffers=2),
    "second length": Spoilt([(0, 2048), (1, 9999)], "could have written", num_buffers=2),
    "second id": Spoilt([(0, 2048), (0, 50)], "id is not the head", num_buffers=2),
}


@pytest.mark.parametrize("spoilt", FAULTS.values(), ids=FAULTS)
def test_faults_of_the_receive_ring(spoilt: Spoilt) -> None:
    with machine() as m:
        m.pair.receive_ring.post()
        spoilt.write(m)
        with pytest.raises(DeviceError, match=spoilt.message) as caught:
            m.pair.receive(timeout=0.5)
        assert caught.value.remedy


def test_several_buffers_without_mergeable_buffers() -> None:
    with machine(features=VERSION_1) as m:
        m.pair.receive_ring.post()
        Spoilt([(0, 2048), (1, 50)], "", num_buffers=2).write(m)
        with pytest.raises(DeviceError, match="num_buffers"):
            m.pair.receive(timeout=0.5)


@pytest.mark.parametrize("strict", [True, False])
def test_num_buffers_without_mergeable_buffers_matters_only_if_strict(strict: bool) -> None:
    with machine(features=VERSION_1, strict=strict) as m:
        m.pair.receive_ring.post()
        Spoilt([(0, 100)], "", num_buffers=7).write(m)
        if strict:
            with pytest.raises(DeviceError, match="num_buffers"):
                m.pair.receive(timeout=0.5)
        else:
            assert m.pair.receive(timeout=0.5) is not None


@pytest.mark.parametrize("strict", [True, False])
def test_buffers_that_are_not_full_matter_only_if_strict(strict: bool) -> None:
    with machine(strict=strict) as m:
        m.pair.receive_ring.post()
        Spoilt([(0, 100), (1, 50)], "", num_buffers=2).write(m)
        if strict:
            with pytest.raises(DeviceError, match="is not full"):
                m.pair.receive(timeout=0.5)
        else:
            frame = m.pair.receive(timeout=0.5)
            assert frame is not None
            assert (len(frame.data), frame.buffers) == (138, 2)


CSUM, DATA_VALID, RSC_INFO = 1, 2, 4
TSO4, TSO6, USO, ECN = 1, 4, 5, 0x80
GUEST = {
    "csum": Feature.VIRTIO_NET_F_GUEST_CSUM,
    "tso4": Feature.VIRTIO_NET_F_GUEST_TSO4,
    "tso6": Feature.VIRTIO_NET_F_GUEST_TSO6,
    "ecn": Feature.VIRTIO_NET_F_GUEST_ECN,
    "uso4": Feature.VIRTIO_NET_F_GUEST_USO4,
    "uso6": Feature.VIRTIO_NET_F_GUEST_USO6,
}

# What was negotiated, the header's fields, and whether that is as it must be.
OFFLOADS = [
    ("csum", NetHeader(flags=CSUM, csum_start=34, csum_offset=16), True),
    ("csum", NetHeader(flags=DATA_VALID), True),
    ("csum", NetHeader(flags=CSUM, csum_start=83, csum_offset=15), True),
    ("csum", NetHeader(flags=CSUM, csum_start=83, csum_offset=16), False),
    ("csum", NetHeader(flags=CSUM, csum_start=0xFFFF, csum_offset=0xFFFF), False),
    ("csum", NetHeader(flags=RSC_INFO), False),
    ("", NetHeader(flags=DATA_VALID), False),
    ("csum tso4", NetHeader(CSUM, TSO4, 54, 20, 34, 16), True),
    ("csum tso4", NetHeader(CSUM, TSO4, 100, 20, 34, 16), True),
    ("csum tso4", NetHeader(CSUM, TSO4, 101, 20, 34, 16), False),
    ("csum tso4", NetHeader(CSUM, TSO4, 54, 0, 34, 16), False),
    ("csum tso4", NetHeader(0, TSO4, 54, 20, 34, 16), False),
    ("csum tso4", NetHeader(CSUM, TSO6, 54, 20, 34, 16), False),
    ("csum tso6", NetHeader(CSUM, TSO6, 54, 20, 34, 16), True),
    ("csum tso6", NetHeader(CSUM, TSO4, 54, 20, 34, 16), False),
    ("csum tso4", NetHeader(CSUM, TSO4 | ECN, 54, 20, 34, 16), False),
    ("csum tso4 ecn", NetHeader(CSUM, TSO4 | ECN, 54, 20, 34, 16), True),
    ("csum tso4 ecn", NetHeader(CSUM, ECN, 54, 20, 34, 16), False),
    ("csum uso4", NetHeader(CSUM, USO, 54, 20, 34, 6), True),
    ("csum uso6", NetHeader(CSUM, USO, 54, 20, 34, 6), True),
    ("csum tso4 tso6", NetHeader(CSUM, USO, 54, 20, 34, 6), False),
    ("csum tso4", NetHeader(CSUM, 7, 54, 20, 34, 6), False),
]


@pytest.mark.parametrize(("accepted", "header", "good"), OFFLOADS)
def test_offloads(accepted: str, header: NetHeader, good: bool) -> None:
    features = MERGEABLE
    for word in accepted.split():
        features |= GUEST[word]
    with machine(features=features) as m:
        m.pair.receive_ring.post()
        m.deliver(header.pack() + bytes(100))
        m.call(m.receive)
        if good:
            frame = m.pair.receive(timeout=0.5)
            assert frame is not None
            assert frame.offload == header
        else:
            with pytest.raises(DeviceError, match="offloads that are impossible"):
                m.pair.receive(timeout=0.5)


SCATTERED = BufferLayout(piece_length=500, indirect=True)


@pytest.mark.parametrize("layout", [BufferLayout(), BufferLayout(length=1536), SCATTERED])
def test_the_largest_frame(layout: BufferLayout) -> None:
    """64 KiB of IP behind two VLAN tags, over many buffers and back through one."""
    data = random.Random(1).randbytes(65557)
    header = NetHeader(CSUM, TSO6, 94, 1448, 62, 16)
    features = MERGEABLE | INDIRECT | GUEST["csum"] | GUEST["tso6"]
    large = BufferLayout(length=65600, piece_length=8192, indirect=True)
    layouts = {"receive_layout": layout, "transmit_layout": large}
    with machine(features=features, size=64, memory=8 << 20, **layouts) as m:
        m.pair.receive_ring.post()
        m.pair.send(data, header=header.pack())
        assert m.echo()
        frame = m.pair.receive(timeout=0.5)
        assert frame is not None
        assert frame.data == data
        assert frame.offload == header
        assert frame.buffers == -(-65569 // layout.length)


def test_a_buffer_used_twice() -> None:
    with machine() as m:
        m.pair.send(bytes(60))
        m.echo(lambda _: None)
        m.pair.drain()
        m.pair.transmit_ring.raw.reset_used_index(2)
        with pytest.raises(DeviceError, match="transmit ring: the used index runs ahead"):
            m.pair.drain()


def test_bytes_written_to_a_transmit_buffer() -> None:
    with machine() as m:
        m.pair.send(bytes(60))
        raw = m.pair.transmit_ring.raw
        raw.used_ring[4:12] = bytes(4) + bytes([60, 0, 0, 0])
        raw.reset_used_index(1)
        with pytest.raises(DeviceError, match="more than the device could have written"):
            m.pair.drain()


def test_a_transmit_buffer_changed() -> None:
    with machine() as m:
        stream = FrameStream(100)
        m.pair.send_stream(stream, 1, drain=False)
        chain = m.transmit.pop()
        assert chain is not None
        m.guest.bytes[chain.segments[0].offset + 50] ^= 1
        m.transmit.push(chain.head, 0)
        m.call(m.transmit)
        with pytest.raises(DeviceError, match="changed before it came back"):
            m.pair.send_stream(stream, 1, timeout=0.5)


def test_two_streams_in_one_ring_are_not_mixed_up() -> None:
    with machine() as m:
        m.pair.send_stream(FrameStream(100, identifier=1), 3, drain=False)
        with m.running(lambda _: None):
            m.pair.send_stream(FrameStream(200, identifier=2), 3)


@pytest.mark.parametrize("layout", [BufferLayout(), BufferLayout(header_apart=True)])
def test_writing_between_buffers_shows(layout: BufferLayout) -> None:
    with machine(receive_layout=layout) as m:
        ring = m.pair.receive_ring
        ring.post()
        ring.check_guards()
        pieces = layout.pieces(HEADER)
        address = ring.buffer_address(3) - pieces[0][0] + sum(pieces[-1])
        m.guest.bytes[address - 1] = 0
        ring.check_guards()
        m.guest.bytes[address] = 0
        with pytest.raises(DeviceError, match=f"guest address {address:#x} was written.*buffer 3"):
            ring.check_guards()

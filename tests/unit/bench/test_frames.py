"""Frames and buffers."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from guestwire.bench import frames
from guestwire.bench.plan import LARGE_FRAME, Case, kind_of
from guestwire.testing import SharedMemory
from guestwire.virtio.segmentation import NetHeader, checksum, complete_checksum, segment

HEADER = NetHeader(flags=1, gso_type=1, hdr_len=54, gso_size=1460, csum_start=34, csum_offset=16)


def case(frame_bytes: int, *, port: str = "echo", ring_size: int = 256, queue_pairs: int = 1) -> Case:
    return Case(kind_of(port), "split", frame_bytes, ring_size, queue_pairs, False)


def test_a_large_frame_is_what_tcp_sends() -> None:
    frame = frames.stream(case(LARGE_FRAME), 3).frame(0)
    assert len(frame) == LARGE_FRAME
    packet = Ether(frame)
    assert (packet[IP].len, packet[TCP].sport) == (LARGE_FRAME - 14, 40003)
    assert checksum(frame[14:34]) == 0
    segments = segment(HEADER, frame)
    assert len(segments) == -(-(LARGE_FRAME - 54) // 1460)
    # scapy computes the checksums of a segment anew.
    for made in (segments[0], segments[-1]):
        wanted = Ether(made)
        for layer in (IP, TCP):
            del wanted[layer].chksum
        assert bytes(wanted) == made
    assert complete_checksum(HEADER, frame)[:50] == frame[:50]


@pytest.mark.parametrize(("port", "needed"), [("echo", 5), ("null", 2)])
def test_offloads_that_a_large_frame_needs(port: str, needed: int) -> None:
    assert len(frames.offloads_needed(case(LARGE_FRAME, port=port))) == needed
    assert not frames.offloads_needed(case(1500, port=port))


@pytest.mark.parametrize("frame_bytes", [64, 9018, LARGE_FRAME])
@pytest.mark.parametrize(("ring_size", "queue_pairs"), [(64, 1), (1024, 4)])
def test_all_buffers_fit_the_memory(frame_bytes: int, ring_size: int, queue_pairs: int) -> None:
    planned = case(frame_bytes, ring_size=ring_size, queue_pairs=queue_pairs)
    receive, transmit = frames.layouts(planned)
    with SharedMemory(frames.memory_bytes(planned)) as memory:
        for _ in range(queue_pairs):
            memory.allocate(receive.share(12) * ring_size, 4096)
            memory.allocate(transmit.share(12) * (frames.transmit_buffers(planned) or ring_size), 4096)
            for _ring in range(2):
                memory.allocate(32 * ring_size, 4096)

"""The Internet checksum of the compiled core."""

from __future__ import annotations

from random import Random

import pytest

from guestwire.datapath.segmentation import checksum
from guestwire.virtio.segmentation import checksum as model


def test_the_example_of_rfc_1071() -> None:
    # Section 3: the sum is ddf2.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2


@pytest.mark.parametrize("displacement", range(9))
def test_any_length_at_any_alignment(displacement: int) -> None:
    data = Random(displacement).randbytes(300)
    for length in range(301):
        assert checksum(data[:length], displacement=displacement) == model(data[:length])


@pytest.mark.parametrize("length", [64, 1448, 1501, 9000, 65535, 65536, 1 << 20, (1 << 20) + 3])
@pytest.mark.parametrize("byte", [0, 1, 0x80, 0xFF])
def test_long_data_does_not_overflow(length: int, byte: int) -> None:
    assert checksum(bytes([byte]) * length) == model(bytes([byte]) * length)


def test_zero_is_the_complement_of_all_ones_only() -> None:
    assert checksum(b"\xff\xff") == 0
    assert checksum(b"\x00\x00") == checksum(b"") == 0xFFFF


@pytest.mark.parametrize("seed", range(50))
def test_pieces_of_any_length_add_up(seed: int) -> None:
    random = Random(seed)
    lengths = [
        random.choice((1, 2, 3, 8, 31, 33, random.randint(1, 5000))) for _ in range(random.randint(1, 20))
    ]
    data = random.randbytes(sum(lengths))
    assert checksum(data, lengths) == model(data)

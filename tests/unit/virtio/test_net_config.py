import struct

from guestwire.virtio.net_config import NetConfig, NetStatus

MAC = bytes.fromhex("525400123456")
CONFIG = NetConfig(MAC, NetStatus.LINK_UP, max_queue_pairs=4, mtu=9000)


def test_layout_is_little_endian_and_packed():
    assert CONFIG.encode() == MAC + b"\x01\x00" + b"\x04\x00" + struct.pack("<H", 9000) + bytes(16)


def test_parts():
    assert CONFIG.read(0, 6) == MAC
    assert CONFIG.read(10, 2) == struct.pack("<H", 9000)
    assert CONFIG.read(7, 2) == b"\x00\x04"


def test_there_are_zeros_behind_the_end():
    assert CONFIG.read(0, 256) == CONFIG.encode().ljust(256, b"\0")
    assert CONFIG.read(200, 8) == bytes(8)


def test_decode_is_the_inverse_of_encode():
    assert NetConfig.decode(CONFIG.encode()) == CONFIG
    assert NetConfig.decode(MAC) == NetConfig(MAC, NetStatus(0), 0, 0)


def test_writing_changes_what_is_read():
    other = bytes.fromhex("525400abcdef")
    written = CONFIG.written(0, other)
    assert written.mac == other
    assert written.mtu == CONFIG.mtu
    assert CONFIG.written(10, struct.pack("<H", 1400)).mtu == 1400
    assert CONFIG.written(250, b"zz") == CONFIG

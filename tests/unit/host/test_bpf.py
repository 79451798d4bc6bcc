from __future__ import annotations

import ctypes
import platform
import sys

import pytest

from guestwire.host import bpf
from guestwire.host.bpf import ProgramInformation, instruction


@pytest.mark.skipif(sys.byteorder != "little", reason="the expected bytes are little-endian")
def test_instruction_encoding() -> None:
    # r2 = *(u32 *)(r1 + 16), as `llvm-objdump -d` prints it: 61 12 10 00 00 00 00 00
    load = instruction(0x61, destination=2, source=1, offset=16)
    assert load == bytes.fromhex("6112100000000000")
    # r0 = -1
    assert instruction(0xB7, immediate=-1) == bytes.fromhex("b7000000ffffffff")


def test_layouts_match_the_kernel_header() -> None:
    """Offsets in union bpf_attr and struct bpf_prog_info, linux/bpf.h."""
    assert bpf._MapCreate.map_name.offset == 28
    assert bpf._MapElement.key.offset == 8
    assert bpf._ProgramLoad.log_buf.offset == 32
    assert bpf._ProgramLoad.prog_name.offset == 48
    assert bpf._ProgramLoad.expected_attach_type.offset == 68
    assert bpf._GetInformation.info.offset == 8
    assert ctypes.sizeof(bpf._LinkCreate) == 16
    assert ProgramInformation.id.offset == 4
    assert ProgramInformation.jited_prog_len.offset == 16
    assert ProgramInformation.name.offset == 64


def test_unknown_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="no known number on vax"):
        bpf.create_map(bpf.MAP_TYPE_XSKMAP, key_bytes=4, value_bytes=4, entries=1, name=b"x")


def test_name_of_a_program_that_does_not_exist() -> None:
    assert bpf.program_name(0x7FFFFFFF) is None

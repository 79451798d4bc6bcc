"""The bpf(2) system call, as far as an XDP program that feeds AF_XDP sockets needs it.

A program of six instructions does not justify libbpf and a BPF compiler in the install.  Each
command has its own ``ctypes`` structure: the leading part of ``union bpf_attr`` in ``linux/bpf.h``
that the command reads.  The kernel takes the size of the structure with every call and treats what
is missing at the end as zero, so these structures stay valid on newer kernels.

Every function raises :class:`OSError` with the kernel's error number; saying what that means to a
person is the caller's part, which knows what it wanted.  Every file descriptor that the kernel
returns here is close-on-exec (``bpf_map_new_fd``, ``bpf_prog_new_fd`` and ``bpf_link_prime`` see to
that).
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import platform
import struct
from typing import Final

# __NR_bpf.  Architectures that came after the unified table share one number.
_SYSCALL_NUMBER: Final = {
    "aarch64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "riscv64": 280,
    "s390x": 351,
    "x86_64": 321,
}

MAP_TYPE_XSKMAP: Final = 17
PROGRAM_TYPE_XDP: Final = 6
ATTACH_TYPE_XDP: Final = 37
PROGRAM_FLAG_XDP_HAS_FRAGS: Final = 1 << 5
FUNCTION_REDIRECT_MAP: Final = 51

OBJECT_NAME_BYTES: Final = 16
"""``BPF_OBJ_NAME_LEN``: the length of a map's or program's name, with its closing zero byte."""

_VERIFIER_LOG_BYTES: Final = 64 * 1024


class VerifierError(OSError):
    """The kernel refused to load a program.

    Attributes:
        log: what the verifier said, empty if it said nothing.
    """

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        self.log = log


class _Command(enum.IntEnum):
    """``enum bpf_cmd``."""

    MAP_CREATE = 0
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    LINK_CREATE = 28


class _MapCreate(ctypes.Structure):
    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * OBJECT_NAME_BYTES),
    )


class _MapElement(ctypes.Structure):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _ProgramLoad(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * OBJECT_NAME_BYTES),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
    )


class _GetById(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint32),
        ("next_id", ctypes.c_uint32),
        ("open_flags", ctypes.c_uint32),
    )


class _GetInformation(ctypes.Structure):
    _fields_ = (
        ("bpf_fd", ctypes.c_uint32),
        ("info_len", ctypes.c_uint32),
        ("info", ctypes.c_uint64),
    )


class _LinkCreate(ctypes.Structure):
    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class ProgramInformation(ctypes.Structure):
    """The leading part of ``struct bpf_prog_info``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * OBJECT_NAME_BYTES),
    )


class _LinkInformation(ctypes.Structure):
    """``struct bpf_link_info`` of an XDP program's link."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("padding_behind", ctypes.c_uint32),
    )


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: _Command, attributes: ctypes.Structure) -> int:
    number = _SYSCALL_NUMBER.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) has no known number on {platform.machine()}")
    result: int = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_long(command),
        ctypes.byref(attributes),
        ctypes.c_ulong(ctypes.sizeof(attributes)),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def instruction(
    operation: int, *, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0
) -> bytes:
    """Encode one BPF instruction (``struct bpf_insn``, 8 bytes, in the machine's byte order)."""
    # The two registers are bit fields, whose order in their byte follows the byte order.
    big_endian = struct.pack("=H", 1) == b"\0\1"
    registers = (destination << 4 | source) if big_endian else (source << 4 | destination)
    return struct.pack("=BBhi", operation, registers, offset, immediate)


def create_map(map_type: int, *, key_bytes: int, value_bytes: int, entries: int, name: bytes) -> int:
    """Create a map and return its file descriptor."""
    attributes = _MapCreate(
        map_type=map_type,
        key_size=key_bytes,
        value_size=value_bytes,
        max_entries=entries,
        map_name=name,
    )
    return _bpf(_Command.MAP_CREATE, attributes)


def update_element(map_fd: int, key: int, value: int) -> None:
    """Set entry ``key`` of a map whose keys and values are 32 bits wide."""
    key_cell, value_cell = ctypes.c_uint32(key), ctypes.c_uint32(value)
    attributes = _MapElement(
        map_fd=map_fd, key=ctypes.addressof(key_cell), value=ctypes.addressof(value_cell)
    )
    _bpf(_Command.MAP_UPDATE_ELEM, attributes)


def delete_element(map_fd: int, key: int) -> None:
    """Clear entry ``key`` of a map whose keys are 32 bits wide."""
    key_cell = ctypes.c_uint32(key)
    _bpf(_Command.MAP_DELETE_ELEM, _MapElement(map_fd=map_fd, key=ctypes.addressof(key_cell)))


def load_program(instructions: bytes, *, program_type: int, attach_type: int, flags: int, name: bytes) -> int:
    """Verify and load a program, and return its file descriptor.

    Raises:
        VerifierError: the kernel refused, with the verifier's log if there is one.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    # Only functions that the kernel marks gpl_only ask for a GPL-compatible licence here, and
    # bpf_redirect_map is not one of them.
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = _ProgramLoad(
        prog_type=program_type,
        insn_cnt=len(instructions) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(licence),
        prog_flags=flags,
        prog_name=name,
        expected_attach_type=attach_type,
    )
    try:
        return _bpf(_Command.PROG_LOAD, attributes)
    except OSError as error:
        raise VerifierError(error.errno or errno.EINVAL, _verifier_log(attributes)) from error


def _verifier_log(attributes: _ProgramLoad) -> str:
    """Load again for the log alone: the first time, one that is too long would be an error."""
    log = ctypes.create_string_buffer(_VERIFIER_LOG_BYTES)
    attributes.log_level = 1
    attributes.log_size = _VERIFIER_LOG_BYTES
    attributes.log_buf = ctypes.addressof(log)
    with contextlib.suppress(OSError):
        os.close(_bpf(_Command.PROG_LOAD, attributes))
    return log.value.decode(errors="replace").strip()


def create_xdp_link(program_fd: int, interface_index: int, flags: int) -> int:
    """Attach an XDP program to an interface, and return the link's file descriptor.

    The program stays attached as long as a file descriptor of the link is open: it leaves with the
    process, however that ends.

    Args:
        program_fd: of a loaded XDP program.
        interface_index: where to attach it.
        flags: one of ``XDP_FLAGS_SKB_MODE`` and ``XDP_FLAGS_DRV_MODE`` (``linux/if_link.h``).
    """
    attributes = _LinkCreate(
        prog_fd=program_fd,
        target_ifindex=interface_index,
        attach_type=ATTACH_TYPE_XDP,
        flags=flags,
    )
    return _bpf(_Command.LINK_CREATE, attributes)


def linked_interface(link_fd: int) -> int:
    """The number of the interface that an XDP program's link holds; 0 if it holds none any more.

    So it is when the interface has gone, and when somebody has detached the link (BPF_LINK_DETACH).
    """
    information = _LinkInformation()
    _get_information(link_fd, information)
    interface_index: int = information.ifindex
    return interface_index


def program_information(program_fd: int) -> ProgramInformation:
    """What the kernel knows about a loaded program."""
    information = ProgramInformation()
    _get_information(program_fd, information)
    return information


def _get_information(descriptor: int, information: ctypes.Structure) -> None:
    attributes = _GetInformation(
        bpf_fd=descriptor,
        info_len=ctypes.sizeof(information),
        info=ctypes.addressof(information),
    )
    _bpf(_Command.OBJ_GET_INFO_BY_FD, attributes)


def program_name(program_id: int) -> str | None:
    """The name of a loaded program; ``None`` if it is gone or we may not look (CAP_SYS_ADMIN)."""
    attributes = _GetById(id=program_id)
    try:
        program_fd = _bpf(_Command.PROG_GET_FD_BY_ID, attributes)
    except OSError:
        return None
    try:
        return bytes(program_information(program_fd).name).decode(errors="replace")
    finally:
        os.close(program_fd)

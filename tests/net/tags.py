"""Senders that leave VLAN tags beside their frames, as VLAN interfaces and bridges do."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from guestwire.host import bpf

# linux/bpf.h
PROGRAM_TYPE_SCHED_CLS = 3
ATTACH_TYPE_TCX_EGRESS = 47
FUNCTION_SKB_VLAN_PUSH = 18

C_TAG, S_TAG = 0x8100, 0x88A8


@contextlib.contextmanager
def tagging(interface: str, ethertype: int, number: int) -> Iterator[None]:
    """Give each frame that leaves an interface of this network namespace a tag, beside the frame."""
    instructions = b"".join(
        (
            bpf.instruction(0xB7, destination=2, immediate=socket.htons(ethertype)),  # r2 = ethertype
            bpf.instruction(0xB7, destination=3, immediate=number),  # r3 = number
            bpf.instruction(0x85, immediate=FUNCTION_SKB_VLAN_PUSH),
            bpf.instruction(0xB7, destination=0, immediate=0),  # r0 = TCX_PASS
            bpf.instruction(0x95),  # exit
        )
    )
    program = bpf.load_program(
        instructions,
        program_type=PROGRAM_TYPE_SCHED_CLS,
        attach_type=ATTACH_TYPE_TCX_EGRESS,
        flags=0,
        name=b"push_vlan",
    )
    try:
        index = socket.if_nametoindex(interface)
        attributes = bpf._LinkCreate(
            prog_fd=program, target_ifindex=index, attach_type=ATTACH_TYPE_TCX_EGRESS
        )
        try:
            link = bpf._bpf(bpf._Command.LINK_CREATE, attributes)
        except OSError as error:
            pytest.skip(f"Linux attaches no program to what leaves an interface (6.6): {error.strerror}")
    finally:
        os.close(program)
    try:
        yield
    finally:
        os.close(link)

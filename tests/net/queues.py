"""Queues of a wire: the far end sends each frame by the one that its destination address names."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from socket import if_nametoindex

from guestwire.host import af_xdp, bpf
from guestwire.host.af_xdp_probe import prepared_socket
from guestwire.testing import Wire

PROGRAM_TYPE_SCHED_CLS = 3
ATTACH_TCX_EGRESS = 47  # since Linux 6.6
QUEUE_MAPPING = 12  # offsetof(struct __sk_buff, queue_mapping)
LAST_OF_DESTINATION = 5


def address_of(queue: int) -> bytes:
    """An address whose frames the far end sends by a queue; a veth's leads to that of the same number."""
    return bytes([2, 0, 0, 0, 0, 1 + queue])


@contextlib.contextmanager
def held_queue(wire: Wire, queue: int) -> Iterator[None]:
    """Hold a queue of the near end as another program would."""
    index = wire.near.call(lambda: if_nametoindex(wire.interface))
    with mmap.mmap(-1, 16 * 4096) as area, wire.near.call(lambda: prepared_socket(area)) as held:
        af_xdp.bind(held, index, queue, af_xdp.XDP_COPY)
        yield


@contextlib.contextmanager
def queues_by_address(wire: Wire) -> Iterator[None]:
    """Have the far end choose the queue by `address_of`, else it would choose by its CPU.

    A frame that has been received on some queue leaves by the one with the same number; the kernel keeps that
    number, plus one, in the place which the program writes to.
    """
    program = b"".join(
        (
            bpf.instruction(0xBF, destination=6, source=1),  # r6 = context
            bpf.instruction(0x30, immediate=LAST_OF_DESTINATION),  # r0 = that byte of the frame
            bpf.instruction(0x63, destination=6, source=0, offset=QUEUE_MAPPING),
            bpf.instruction(0xB7, destination=0, immediate=-1),  # TC_ACT_UNSPEC
            bpf.instruction(0x95),
        )
    )
    with contextlib.ExitStack() as descriptors:
        fd = bpf.load_program(
            program,
            program_type=PROGRAM_TYPE_SCHED_CLS,
            attach_type=ATTACH_TCX_EGRESS,
            flags=0,
            name=b"by_address",
        )
        descriptors.callback(os.close, fd)
        index = wire.far.call(lambda: if_nametoindex(wire.peer_interface))
        link = bpf._LinkCreate(prog_fd=fd, target_ifindex=index, attach_type=ATTACH_TCX_EGRESS)
        descriptors.callback(os.close, wire.far.call(lambda: bpf._bpf(bpf._Command.LINK_CREATE, link)))
        yield

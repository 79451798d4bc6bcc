"""What a driver can do wrong on a split virtqueue, one stable name and number each.

The numbers are part of the interface: the compiled ring stops with them, counters and logs are
labelled with the names.  Quotations are from the Virtual I/O Device specification, version 1.3.

A hostile ring can break several rules at once.  So that every implementation reports the same one,
the order of the checks is fixed:

1. the available index (``AVAILABLE_INDEX``);
2. the available ring's entry (``HEAD_OUT_OF_RANGE``, ``HEAD_IN_FLIGHT``);
3. for each descriptor, read once, in chain order:

   a. one that refers to an indirect table: ``INDIRECT_NOT_NEGOTIATED``, ``INDIRECT_NESTED``,
      ``INDIRECT_WITH_NEXT``, ``INDIRECT_LENGTH``, then ``ADDRESS_OUTSIDE_MEMORY`` for the table;
      the chain goes on at the table's first descriptor;
   b. one that refers to a buffer: ``CHAIN_TOO_LONG``, ``DIRECTION``, ``ZERO_LENGTH``,
      ``ADDRESS_OUTSIDE_MEMORY``, ``CHAIN_TOO_LARGE``; then, if the chain continues,
      ``NEXT_OUT_OF_RANGE``.
"""

from __future__ import annotations

import enum

from guestwire.errors import GuestError


class RingError(enum.IntEnum):
    """A rule of the split virtqueue that the driver broke.

    Attributes:
        summary: what the driver did, as the end of a sentence.
        section: where the specification forbids it.
        rule: the sentence that forbids it, or the one from which it follows.
    """

    summary: str
    section: str
    rule: str

    def __new__(cls, value: int, summary: str, section: str, rule: str) -> RingError:
        """Attach the explanation to the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.summary = summary
        member.section = section
        member.rule = rule
        member.__doc__ = f"{summary} (virtio 1.3, {section}: {rule!r})"
        return member

    AVAILABLE_INDEX = (
        1,
        "the available index moved by more than the queue size",
        "2.7.6.1",
        "A driver MUST NOT decrement the available idx on a virtqueue",
    )
    HEAD_OUT_OF_RANGE = (
        2,
        "an available ring entry is not below the queue size",
        "2.7.6",
        "each ring entry refers to the head of a descriptor chain",
    )
    HEAD_IN_FLIGHT = (
        3,
        "a chain was made available again before the device used it",
        "2.7.13.1",
        "Get the next free descriptor table entry, d",
    )
    NEXT_OUT_OF_RANGE = (
        4,
        "a descriptor's next field points behind its table",
        "2.7.5",
        "The number of descriptors in the table is defined by the queue size for this virtqueue",
    )
    CHAIN_TOO_LONG = (
        5,
        "a chain has more buffers than the queue size or the device's limit, or loops",
        "2.7.5.3.1",
        "A driver MUST NOT create a descriptor chain longer than the Queue Size of the device",
    )
    CHAIN_TOO_LARGE = (
        6,
        "a chain has more than 2^32 bytes",
        "2.7.5.2",
        "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total",
    )
    ADDRESS_OUTSIDE_MEMORY = (
        7,
        "a descriptor refers to what is not, or not all, contiguous guest memory",
        "2.7.5",
        "addr is a physical address",
    )
    ZERO_LENGTH = (
        8,
        "a descriptor refers to a buffer of no bytes",
        "2.7.13.1",
        "Set d.len to the length of b",
    )
    DIRECTION = (
        9,
        "a receive ring got a device-readable buffer, or a transmit ring a device-writable one",
        "2.7.5.1",
        "A device MUST NOT write to a device-readable buffer",
    )
    INDIRECT_NOT_NEGOTIATED = (
        10,
        "an indirect table was used without VIRTIO_F_INDIRECT_DESC",
        "2.7.5.3.1",
        "The driver MUST NOT set [it] unless the VIRTIO_F_INDIRECT_DESC feature was negotiated",
    )
    INDIRECT_NESTED = (
        11,
        "an indirect table refers to another indirect table",
        "2.7.5.3.1",
        "The driver MUST NOT set the VIRTQ_DESC_F_INDIRECT flag within an indirect descriptor",
    )
    INDIRECT_WITH_NEXT = (
        12,
        "a descriptor refers to an indirect table and continues as well",
        "2.7.5.3.1",
        "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT in flags",
    )
    INDIRECT_LENGTH = (
        13,
        "an indirect table's length is zero or not a multiple of 16",
        "2.7.5.3",
        "struct virtq_desc desc[len / 16]",
    )


class RingStoppedError(GuestError):
    """A ring stopped because the driver broke a rule of the split virtqueue.

    Attributes:
        error: the rule.
    """

    def __init__(self, error: RingError, detail: str) -> None:
        super().__init__(
            f"the ring stopped, {error.name}: {error.summary}: {detail}",
            "reset the device in the guest (unbind and bind its driver, or reboot the guest); "
            "if it happens again, the guest's driver is broken or hostile",
        )
        self.error = error

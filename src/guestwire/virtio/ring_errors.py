"""What a driver can do wrong on a virtqueue, one stable name and number each.

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
      ``NEXT_OUT_OF_RANGE``.  In an indirect table of a transmit ring there is no ``DIRECTION``.

Of a packed ring:

1. for each descriptor of a list, read once, in ring order:

   a. that it is the driver's: ``CHAIN_TOO_LONG``, ``DESCRIPTOR_IN_FLIGHT``;
   b. one that refers to an indirect table: ``INDIRECT_NOT_NEGOTIATED``, ``INDIRECT_WITH_NEXT``, which
      also means that it is not alone in its list, ``INDIRECT_LENGTH``, ``ADDRESS_OUTSIDE_MEMORY``;
      then for each descriptor of the table ``INDIRECT_NESTED`` and what is checked of a buffer;
   c. one that refers to a buffer: as above, but for ``NEXT_OUT_OF_RANGE``;

2. the buffer id, which is in the last descriptor: ``HEAD_OUT_OF_RANGE``, ``HEAD_IN_FLIGHT``.
"""

from __future__ import annotations

import enum

from guestwire.errors import GuestError


class RingError(enum.IntEnum):
    """A rule of the virtqueue that the driver broke.

    Attributes:
        summary: what the driver did, as the end of a sentence.
        section: where the specification forbids it, on a split ring if there is such a rule for it.
        rule: the sentence that forbids it there, or the one from which it follows.
        packed_section: where the specification forbids it on a packed ring; empty if it cannot happen there.
    """

    summary: str
    section: str
    rule: str
    packed_section: str

    def __new__(
        cls, value: int, summary: str, section: str, rule: str, packed_section: str = ""
    ) -> RingError:
        """Attach the explanation to the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.summary = summary
        member.section = section
        member.rule = rule
        member.packed_section = packed_section
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
        "an available ring entry, or a buffer id, is not below the queue size",
        "2.7.6",
        "each ring entry refers to the head of a descriptor chain",
        "2.8.21.1",
    )
    HEAD_IN_FLIGHT = (
        3,
        "a chain was made available again before the device used it",
        "2.7.13.1",
        "Get the next free descriptor table entry, d",
        "2.8.21.1",
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
        "2.8.17",
    )
    CHAIN_TOO_LARGE = (
        6,
        "a chain has more than 2^32 bytes",
        "2.7.5.2",
        "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total",
        "2.8.5",
    )
    ADDRESS_OUTSIDE_MEMORY = (
        7,
        "a descriptor refers to what is not, or not all, contiguous guest memory",
        "2.7.5",
        "addr is a physical address",
        "2.8.13",
    )
    ZERO_LENGTH = (
        8,
        "a descriptor refers to a buffer of no bytes",
        "2.7.13.1",
        "Set d.len to the length of b",
        "2.8.21.1",
    )
    DIRECTION = (
        9,
        "a receive ring got a device-readable buffer, or a transmit ring a device-writable one",
        "2.7.5.1",
        "A device MUST NOT write to a device-readable buffer",
        "2.8.15",
    )
    INDIRECT_NOT_NEGOTIATED = (
        10,
        "an indirect table was used without VIRTIO_F_INDIRECT_DESC",
        "2.7.5.3.1",
        "The driver MUST NOT set [it] unless the VIRTIO_F_INDIRECT_DESC feature was negotiated",
        "2.8.19",
    )
    INDIRECT_NESTED = (
        11,
        "an indirect table refers to another indirect table",
        "2.7.5.3.1",
        "The driver MUST NOT set the VIRTQ_DESC_F_INDIRECT flag within an indirect descriptor",
        "2.8.19",
    )
    INDIRECT_WITH_NEXT = (
        12,
        "a descriptor refers to an indirect table and continues as well, or ends a packed ring's list",
        "2.7.5.3.1",
        "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT in flags",
        "2.8.19",
    )
    INDIRECT_LENGTH = (
        13,
        "an indirect table's length is zero or not a multiple of 16",
        "2.7.5.3",
        "struct virtq_desc desc[len / 16]",
        "2.8.7",
    )
    DESCRIPTOR_IN_FLIGHT = (
        14,
        "more descriptors of a packed ring were made available than it has free ones",
        "2.8.16",
        "A driver MUST NOT change a descriptor unless it observes the VIRTQ_DESC_F_USED bit [...] changed",
        "2.8.16",
    )


class RingStoppedError(GuestError):
    """A ring stopped because the driver broke a rule of the virtqueue.

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

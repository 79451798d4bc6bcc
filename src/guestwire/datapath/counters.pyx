# cython: language_level=3
"""Counters of a guest's queue pairs, in a small file that anybody may map and read.

Each queue pair has one writer, its worker, which adds with plain stores at the end of a burst; readers
take no lock and cost the writer nothing. A 64-bit store is atomic on every machine we build for, so a
reader sees each counter whole, though not all of them at one instant.
"""

import os
import struct

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    const int PROT_READ, PROT_WRITE
    const int MAP_SHARED
    void *MAP_FAILED

MAGIC = b"GWCOUNT1"
HEADER_BYTES = 64
PAIR_BYTES = sizeof(pair_counters)
COPY_REASONS = ("port_copies", "bounce_mode", "buffer_too_small", "scattered", "bad_place", "page_crossing",
                "few_buffers", "header_policy", "checksum", "segmentation", "several_buffers", "merged",
                "other_queue")
DROP_REASONS = ("too_short", "too_long", "no_buffers", "ring_disabled", "not_negotiated", "no_receiver",
                "unexpected_place", "source_address", "unsent", "bad_offload")
WORKER_COUNTERS = ("bursts", "sleeps", "rx_calls", "tx_calls", "kicks", "system_calls", "ring_errors",
                   "idle_ns")

if len(COPY_REASONS) != COPY_REASON_COUNT or len(DROP_REASONS) != DROP_REASON_COUNT:
    raise ImportError("counters.pxd and counters.pyx disagree")


cdef class Counters:
    """The counters of one guest.

    Args:
        fd: an open, empty file to keep them in; borrowed, needed only during construction.
        pairs: how many queue pairs.
    """

    def __init__(self, fd, pairs):
        self.pairs = pairs
        self.area_size = HEADER_BYTES + pairs * PAIR_BYTES
        # In a hole, a full file system shows by a fatal SIGBUS when a counter is written.
        os.posix_fallocate(fd, 0, self.area_size)
        os.pwrite(fd, MAGIC + struct.pack("<II", pairs, PAIR_BYTES), 0)
        self.area = <uint8_t *>mmap(NULL, self.area_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if self.area == MAP_FAILED:
            self.area = NULL
            raise OSError(errno, "cannot map the counter file: " + os.strerror(errno))

    def __dealloc__(self):
        if self.area != NULL:
            munmap(self.area, self.area_size)

    cdef pair_counters *pair(self, int index) except NULL:
        if not 0 <= index < self.pairs:
            raise IndexError(f"queue pair {index} of {self.pairs}")
        return &(<pair_counters *>(self.area + <uint64_t>HEADER_BYTES))[index]

    def read(self):
        """Return the file's bytes now; `guestwire.metrics.decode` explains them."""
        return (<const char *>self.area)[:self.area_size]

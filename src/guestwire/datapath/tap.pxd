"""The queue of a TAP interface as its two halves share it; see tap.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec *vectors, int count, long offset, int flags)
    ssize_t pwritev2(int fd, const iovec *vectors, int count, long offset, int flags)
    const int RWF_NOWAIT

from guestwire.datapath.abi cimport net_header, used_element
from guestwire.datapath.atomics cimport load_relaxed_u32
from guestwire.datapath.frames cimport LONGEST_GSO_FRAME
from guestwire.datapath.port cimport pair_context, port_interface
from guestwire.datapath.ring cimport BURST_CHAINS, BURST_SEGMENTS, segment
from guestwire.datapath.sent_frame cimport sent_frame

cdef enum:
    MOST_VECTORS = 1024             # of one call (UIO_MAXIOV)
    SPILL_BYTES = LONGEST_GSO_FRAME + 1     # what fills it was longer than any frame
    PAGE = 4096

cdef struct tap_port:
    port_interface base
    int nowait                      # RWF_NOWAIT, or 0 if the kernel does not know it for this file
    uint32_t longest_frame          # that is not to be segmented
    uint32_t longest_received
    # The receive buffers, as they wait in the burst, a vector for each segment; before those of the first
    # chain is one for the header. They are made anew when the burst has changed.
    uint32_t first                  # the burst as `vectors` describes it: chains[first:end],
    uint32_t end
    uint32_t vector_at[BURST_CHAINS + 1]    # by position there: the vector of a chain's first segment
    uint32_t cover_end              # a frame is read into chains[first:cover_end],
    uint32_t covered                # which have so many bytes
    net_header header               # of the frame that was read last
    # That frame, if it waits for more buffers:
    uint32_t waiting_length         # header included; 0: none waits
    uint32_t waiting_chains         # how many chains at the burst's front hold their part of it
    bint held                       # the kernel did not take the next frame in this pass
    uint64_t refused_since          # and since when; 0: it did
    uint32_t sent
    uint32_t received
    used_element sent_elements[BURST_CHAINS]
    used_element received_elements[BURST_CHAINS]
    iovec vectors[BURST_SEGMENTS + BURST_CHAINS + 1]
    iovec send_vectors[MOST_VECTORS + 1]
    sent_frame frame                # one with offloads
    uint8_t spill[SPILL_BYTES]

cdef inline void list_segments(
    const pair_context *pair, const segment *segments, uint32_t count, iovec *vectors
) noexcept nogil:
    """Make a vector for each segment."""
    cdef uint32_t i
    for i in range(count):
        vectors[i].iov_base = pair.window.base + segments[i].offset
        vectors[i].iov_len = segments[i].length

cdef inline void leave_out(iovec *vectors, size_t skip) noexcept nogil:
    """Take the first bytes out of vectors that have as many. Empty ones may remain, which is allowed."""
    cdef uint32_t i = 0
    while skip > vectors[i].iov_len:
        skip -= vectors[i].iov_len
        vectors[i].iov_len = 0
        i += 1
    vectors[i].iov_base = <uint8_t *>vectors[i].iov_base + skip
    vectors[i].iov_len -= skip

cdef inline void touch(const iovec *vectors, uint32_t count) noexcept nogil:
    """Look at memory that the kernel found missing (EFAULT).

    To us that is SIGBUS, whose handler notes that the window is broken, and the pair's work ends.
    """
    cdef uint64_t at, end
    cdef uint32_t i
    for i in range(count):
        at = <uint64_t>vectors[i].iov_base & ~<uint64_t>(PAGE - 1)
        end = <uint64_t>vectors[i].iov_base + vectors[i].iov_len
        while at < end:
            load_relaxed_u32(<const uint32_t *>at)
            at += PAGE

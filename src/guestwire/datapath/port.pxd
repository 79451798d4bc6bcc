"""What the worker asks of a port: four verbs, each a burst, none of which blocks."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.coalescing cimport coalescing
from guestwire.datapath.counters cimport pair_counters
from guestwire.datapath.ring cimport burst, ring
from guestwire.datapath.window cimport window

# What a port may use of its queue pair.
cdef struct pair_context:
    const window *window
    ring *rx
    ring *tx
    burst *buffers              # receive chains popped and not yet taken by the port
    pair_counters *counters
    uint16_t header_size        # of virtio_net_hdr: 12, or 10 for a legacy guest
    bint mergeable              # VIRTIO_NET_F_MRG_RXBUF
    uint64_t offloads           # the features that were negotiated of those that say what a header may ask
    bint receiving              # the receive ring is enabled: as of this pass, unless the port keeps it
    coalescing calls            # held back; the port says so for a receive ring that it keeps

# Completions are handed over as an array that stays the port's and is valid until its next call.
cdef struct port_interface:
    # Take buffers from the front of `buffers`, as many as are useful now.
    void (*rx_post)(port_interface *self, burst *buffers) noexcept nogil
    # Frames that have arrived; all buffers of one frame in one array, in order.
    uint32_t (*rx_poll)(port_interface *self, const used_element **done) noexcept nogil
    # Take frames from the front of `frames`, as many as there is room for.
    void (*tx_submit)(port_interface *self, burst *frames) noexcept nogil
    # Frames that have left: their buffers are the guest's again.
    uint32_t (*tx_poll)(port_interface *self, const used_element **done) noexcept nogil
    # Called once, when no worker has the pair any more: finish what can be finished. Buffers that remain are
    # offered to the next port, in the guest's order.
    void (*drain)(port_interface *self) noexcept nogil
    pair_context *pair
    int fd                      # readable when rx_poll has something; -1: never sleeps for that
    const int *more_fds         # the same, of as many more
    uint32_t more_fd_count
    bint keeps_receive_ring     # the worker leaves that ring alone, and calls rx_post all the same
    bint wants_buffers          # a kick of the receive ring is worth waking up for
    bint busy                   # tx_poll must be called again soon: sleep only for a while
    bint look_later             # the kernel may be about to ask for a call: the next sleep is a short one
    bint under_way              # of the next frame a part was taken, so tx_submit must have it once more
    bint progress               # something was done, although no frame or buffer is through: poll again
    bint gone                   # what the port is made of is no more

cdef class Port:
    cdef port_interface *port             # owned by the subclass

"""The wire port: a switch between the guests of one process; see wire.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.frames cimport frame_addresses, piece
from guestwire.datapath.inlet cimport inlet, waiter
from guestwire.datapath.network cimport Network, network
from guestwire.datapath.port cimport Port, port_interface
from guestwire.datapath.sent_frame cimport sent_frame
from guestwire.datapath.ring cimport BURST_CHAINS, BURST_SEGMENTS, burst

cdef struct wire_port:
    port_interface base
    network *network
    inlet *own
    uint32_t member
    uint32_t pair
    uint64_t source             # the only address that the guest may send from; 0: any
    uint64_t ageing             # seconds
    uint64_t wait_ns            # the longest time that a frame waits for buffers
    # The inlet that frames are being delivered to.
    inlet *entered
    bint able
    # Of the last frame, so that most need no look at the table.
    uint64_t now                # seconds, when this pass began
    uint64_t source_known
    uint64_t source_known_until
    uint64_t destination
    inlet *destination_inlet    # NULL: not known
    # The first frame that was not taken.
    inlet *target               # of the frame under way
    inlet *waits_at
    uint64_t waits_since        # ns; 0: it does not wait
    waiter waiter
    frame_addresses addresses
    sent_frame frame            # one with offloads
    piece pieces[BURST_SEGMENTS]
    burst *frames               # where `submit` had them from
    uint32_t sent
    used_element sent_elements[BURST_CHAINS]

cdef class WirePort(Port):
    cdef readonly Network network

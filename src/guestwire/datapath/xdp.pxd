"""The state of an xdp port, shared by its receiving and its sending half."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.frames cimport piece
from guestwire.datapath.merging cimport merger
from guestwire.datapath.port cimport Port, port_interface
from guestwire.datapath.segmentation cimport segmenter
from guestwire.datapath.ring cimport BURST_CHAINS, BURST_SEGMENTS, burst
from guestwire.datapath.window cimport FRAME_BYTES
from guestwire.datapath.xdp_socket cimport XdpSocket, socket_ring

cdef enum:
    KERNEL_HEADROOM = 256       # XDP_PACKET_HEADROOM
    OFFSET_SHIFT = 48           # XSK_UNALIGNED_BUF_OFFSET_SHIFT
    MOST_PIECES = 17            # of one frame; the kernel's copy mode takes 18 descriptors
    NO_HEAD = 0xFFFF            # a bounce frame for whichever chain comes next
    GUEST_BUFFER = 0xFFFFFFFF   # not a bounce frame
    SEND_RESERVE = 64           # bounce frames that receiving leaves for sending
    HEADER_COPY = 128           # bytes of a frame that hold all headers anybody looks at
    SOURCE_ADDRESS = 6          # where it is in an Ethernet header
    WAKES_A_BURST = 4           # the kernel sends 32 frames a call in copy mode
    DRAIN_NS = 100000000        # the longest wait for frames on their way out
    COPY_NOT = 0xFF             # beside the reasons: no copy
    MOST_BUFFERS = 64           # of a received frame: up to 18 from the kernel, or those that were merged
    MOST_SPLITS = 64            # of the pieces of a frame of up to 64 KiB, into chunks of 2 KiB or more
    WITH_THE_KERNEL = 1
    SPANNED = 2                 # arrived as one of several buffers of a frame that is not taken yet
    ARRIVED = 0
    MOST_HELD = 513             # chains kept for stand-ins
    POSTED_LEAST = 64           # buffers that the kernel has beside stand-ins, whoever's they are

cdef struct posted_buffer:
    uint64_t address            # in the UMEM, as written to the fill ring
    uint64_t header             # window offset of the virtio_net_hdr, for a guest buffer
    uint32_t frame              # number of the bounce frame, or GUEST_BUFFER
    uint16_t head               # the chain, or NO_HEAD
    uint8_t state
    uint8_t reason              # why a bounce frame: COPY_...

# A socket on the queue of a pair that is not at work; this port delivers what arrives there. All its memory
# is bounce frames, which are in its fill ring but for those with arrivals that wait.
cdef struct stand_in:
    socket_ring *fill
    socket_ring *rx
    uint64_t umem               # window offset of UMEM address 0
    uint64_t frames             # UMEM address of the first frame
    uint64_t size               # bytes of all frames

cdef struct xdp_port:
    port_interface base
    socket_ring *fill
    socket_ring *completion
    socket_ring *rx
    socket_ring *tx
    uint64_t umem               # window offset of UMEM address 0
    uint64_t bounce             # UMEM address of the first bounce frame
    uint32_t chunk
    uint32_t before_frame       # bytes from a fill address to its frame
    uint32_t room_needed        # bytes a guest buffer must have behind the header
    uint32_t longest_frame
    uint32_t most_pieces        # descriptors a sent frame may have
    uint32_t in_place_from      # bytes of a segment whose payload is sent from the guest's pages
    uint32_t reserve            # buffers that the kernel must have at least, whoever's they are
    bint guest_memory           # the guest's memory is registered: direct or zero-copy
    bint zero_copy
    bint busy_poll              # the kernel polls the queue when it is called
    bint copy_headers           # send the first HEADER_COPY bytes from memory of our own
    bint check_source           # only frames from `source` are sent
    uint8_t source[6]
    bint down                   # the kernel said so when it was last asked to send
    bint closed
    # Receive.
    posted_buffer *posted
    uint32_t posted_mask
    uint32_t posted_first
    uint32_t posted_end
    uint32_t overtaken          # entries before this one are older than a chain that was returned
    uint32_t chains_posted      # entries with a chain: more of the guest's buffers come only after them
    uint32_t spare_posted       # entries without
    bint spares_lacking         # fewer than receiving could do with
    uint32_t received
    used_element received_elements[2 * BURST_CHAINS]
    uint64_t received_at[2 * BURST_CHAINS]  # where header and frame lie in one piece; 0: nowhere
    bint several_buffers        # a frame may be longer than a chunk
    bint finish_checksums       # the interface hands over frames whose checksum is unfinished
    bint merge                  # segments of one flow become one frame
    merger merger
    burst *scratch              # for reading a chain a second time
    stand_in *stand_ins
    int *stand_in_fds
    uint32_t stand_in_count
    uint32_t stand_in_next      # whose turn it is to be first
    # Transmit.
    uint32_t *pieces_left       # by head: descriptors the kernel still has, and one while segments follow
    uint8_t *frames_out         # by number of the bounce frame: the kernel sends from it
    uint32_t descriptors_out
    uint32_t sent
    used_element sent_elements[BURST_CHAINS + 1]    # one more when a frame is given up at the end
    piece pieces[BURST_SEGMENTS + MOST_SPLITS]
    bint segmenting             # of the chain that comes next, some segments are sent and some are not
    uint16_t segmenting_head
    uint8_t segmenting_copy     # why payload of it was copied: COPY_...
    uint32_t segmenting_length  # of the whole frame
    bint segmenting_gso         # it has a gso_type
    uint16_t abandoned_head     # the last chain given up half-way, and counted; or NO_HEAD
    segmenter segmenter
    # Bounce frames that nobody uses.
    uint32_t *free_frames
    uint32_t free_count
    uint32_t frame_count        # all bounce frames of this port

cdef inline uint64_t address_bits(uint64_t address) noexcept nogil:
    """The lower 48 bits: an address without the offset in the upper ones."""
    return address & ((<uint64_t>1 << OFFSET_SHIFT) - 1)

cdef inline uint64_t frame_address(const xdp_port *x, uint32_t frame) noexcept nogil:
    return x.bounce + <uint64_t>frame * FRAME_BYTES

cdef class XdpPort(Port):
    cdef XdpSocket socket
    cdef tuple stand_ins

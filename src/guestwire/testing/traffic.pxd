"""The loop through which all traffic of a queue pair goes."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport net_header
from guestwire.testing.driver_ring cimport device_fault, driver_ring
from guestwire.testing.frame_stream cimport arrival, frame_stream

cdef enum:
    NO_SEQUENCE = -1            # in driver_ring.sequence: the buffer holds no frame of a stream
    RECEIVED_MOST = 65557 + 12  # LONGEST_GSO_FRAME with its header

cdef enum outcome:
    GO_ON                       # the slice of time is over, call `run` again
    DONE
    SILENT                      # nothing moved for as long as `patience_ns`
    FAILED                      # `fault` or `how` says why

cdef struct run_state:
    driver_ring *transmit       # NULL: nothing is sent
    driver_ring *receive        # NULL: nothing is received
    frame_stream *to_send       # NULL: only take back what was sent
    frame_stream *to_receive    # NULL: take one frame, whatever it is
    # What is wanted.
    uint64_t send_start         # to_send.sent when the run began
    uint64_t send_end           # send until to_send.sent is this
    uint64_t receive_start      # to_receive.received + lost when the run began
    uint64_t receive_end        # receive until to_receive.received + lost is this
    uint64_t window             # most frames on the way
    uint32_t burst
    bint drain                  # end only when the device has given back what was sent
    bint wait                   # sleep instead of polling
    bint allow_loss
    bint verify_sent
    bint mergeable              # VIRTIO_NET_F_MRG_RXBUF
    bint count_only             # take whatever arrives and count it
    bint strict                 # what no driver looks at must be right, too
    bint accept_empty           # a receive buffer may come back with nothing in it
    uint64_t features           # what was negotiated: it says what the device may set in a header
    uint64_t patience_ns
    # What happened.
    uint64_t taken_back         # frames that were sent and that the device has given back
    uint64_t arrived            # frames that were only counted
    uint64_t arrived_bytes
    uint64_t started_ns
    uint64_t progress_ns        # when something moved last
    device_fault fault
    driver_ring *faulty
    arrival how
    uint64_t expected           # the number that was expected when `how` was found
    net_header header           # of the last frame
    uint64_t empty              # receive buffers that came back so
    uint16_t frame_buffers      # receive buffers of the last frame
    uint32_t received_length    # of the last frame, header included
    uint8_t *received           # RECEIVED_MOST bytes: the last frame, if it was not in one piece

cdef uint64_t now_ns() noexcept nogil
cdef int turn(run_state *s) noexcept nogil
cdef bint is_done(const run_state *s) noexcept nogil
cdef outcome run(run_state *s) noexcept nogil

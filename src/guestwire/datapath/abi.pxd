"""Layouts of abi.h: virtio rings and the network header (virtio 1.3), AF_XDP (linux/if_xdp.h)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    NET_HEADER = 12         # bytes of a virtio_net_hdr; 10 without num_buffers

cdef extern from "abi.h" nogil:
    struct split_descriptor:
        uint64_t address
        uint32_t length
        uint16_t flags
        uint16_t next

    enum:
        DESCRIPTOR_F_NEXT
        DESCRIPTOR_F_WRITE
        DESCRIPTOR_F_INDIRECT
        AVAILABLE_F_NO_INTERRUPT
        USED_F_NO_NOTIFY

    struct split_available:
        uint16_t flags
        uint16_t index
        uint16_t *ring

    struct used_element:
        uint32_t id
        uint32_t length

    struct split_used:
        uint16_t flags
        uint16_t index
        used_element *ring

    struct packed_descriptor:
        uint64_t address
        uint32_t length
        uint16_t id
        uint16_t flags

    enum:
        DESCRIPTOR_F_AVAIL
        DESCRIPTOR_F_USED
        RING_EVENT_FLAGS_ENABLE
        RING_EVENT_FLAGS_DISABLE
        RING_EVENT_FLAGS_DESC

    struct net_header:
        uint8_t flags
        uint8_t gso_type
        uint16_t header_length
        uint16_t gso_size
        uint16_t checksum_start
        uint16_t checksum_offset
        uint16_t num_buffers

    enum:
        VIRTIO_NET_HDR_F_NEEDS_CSUM
        VIRTIO_NET_HDR_F_DATA_VALID
        VIRTIO_NET_HDR_GSO_NONE
        VIRTIO_NET_HDR_GSO_TCPV4
        VIRTIO_NET_HDR_GSO_TCPV6
        VIRTIO_NET_HDR_GSO_UDP_L4
        VIRTIO_NET_HDR_GSO_ECN

    const uint64_t VIRTIO_NET_F_CSUM
    const uint64_t VIRTIO_NET_F_GUEST_CSUM
    const uint64_t VIRTIO_NET_F_GUEST_TSO4
    const uint64_t VIRTIO_NET_F_GUEST_TSO6
    const uint64_t VIRTIO_NET_F_GUEST_ECN
    const uint64_t VIRTIO_NET_F_HOST_TSO4
    const uint64_t VIRTIO_NET_F_HOST_TSO6
    const uint64_t VIRTIO_NET_F_HOST_ECN
    const uint64_t VIRTIO_NET_F_GUEST_USO4
    const uint64_t VIRTIO_NET_F_GUEST_USO6
    const uint64_t VIRTIO_NET_F_HOST_USO

    struct xdp_desc:
        uint64_t addr
        uint32_t len
        uint32_t options

    struct xdp_ring_offset:
        uint64_t producer
        uint64_t consumer
        uint64_t desc
        uint64_t flags

    struct xdp_mmap_offsets:
        xdp_ring_offset rx
        xdp_ring_offset tx
        xdp_ring_offset fr
        xdp_ring_offset cr

    struct xdp_umem_reg:
        uint64_t addr
        uint64_t len
        uint32_t chunk_size
        uint32_t headroom
        uint32_t flags

    struct sockaddr_xdp:
        uint16_t sxdp_family
        uint16_t sxdp_flags
        uint32_t sxdp_ifindex
        uint32_t sxdp_queue_id
        uint32_t sxdp_shared_umem_fd

    struct xdp_statistics:
        uint64_t rx_dropped
        uint64_t rx_invalid_descs
        uint64_t tx_invalid_descs
        uint64_t rx_ring_full
        uint64_t rx_fill_ring_empty_descs
        uint64_t tx_ring_empty_descs

    struct xdp_options:
        uint32_t flags

    enum:
        AF_XDP
        SOL_XDP
        XDP_COPY
        XDP_ZEROCOPY
        XDP_USE_NEED_WAKEUP
        XDP_USE_SG
        XDP_PKT_CONTD
        XDP_RING_NEED_WAKEUP
        XDP_UMEM_UNALIGNED_CHUNK_FLAG
        XDP_OPTIONS_ZEROCOPY
        XDP_MAX_TX_SKB_BUDGET
        XDP_MMAP_OFFSETS
        XDP_RX_RING
        XDP_TX_RING
        XDP_UMEM_REG
        XDP_UMEM_FILL_RING
        XDP_UMEM_COMPLETION_RING
        XDP_STATISTICS
        XDP_OPTIONS

    const uint64_t XDP_PGOFF_RX_RING
    const uint64_t XDP_PGOFF_TX_RING
    const uint64_t XDP_UMEM_PGOFF_FILL_RING
    const uint64_t XDP_UMEM_PGOFF_COMPLETION_RING

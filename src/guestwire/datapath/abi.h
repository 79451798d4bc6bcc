/* Layouts that other people defined: virtio rings and headers (virtio 1.3), AF_XDP (linux/if_xdp.h). */
#ifndef GUESTWIRE_ABI_H
#define GUESTWIRE_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <linux/if_xdp.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtio 1.x is little-endian and guestwire reads it in place: big-endian hosts are not supported"
#endif

/* virtio 1.3, 2.7.5 The Virtqueue Descriptor Table */
struct split_descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

#define DESCRIPTOR_F_NEXT 1
#define DESCRIPTOR_F_WRITE 2
#define DESCRIPTOR_F_INDIRECT 4

/* 2.7.6 The Virtqueue Available Ring; used_event follows the last entry */
struct split_available {
    uint16_t flags;
    uint16_t index;
    uint16_t ring[];
};

#define AVAILABLE_F_NO_INTERRUPT 1

/* 2.7.8 The Virtqueue Used Ring; avail_event follows the last entry */
struct used_element {
    uint32_t id;
    uint32_t length;
};

struct split_used {
    uint16_t flags;
    uint16_t index;
    struct used_element ring[];
};

#define USED_F_NO_NOTIFY 1

/* 2.8.13 The Virtqueue Descriptor Format of a packed virtqueue; the flags above, and these */
struct packed_descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t id;
    uint16_t flags;
};

#define DESCRIPTOR_F_AVAIL (1 << 7)
#define DESCRIPTOR_F_USED (1 << 15)

/* 2.8.10 and 2.8.14 Driver and Device Event Suppression: a 16-bit offset with its wrap counter on top, then flags */
#define RING_EVENT_FLAGS_ENABLE 0
#define RING_EVENT_FLAGS_DISABLE 1
#define RING_EVENT_FLAGS_DESC 2

/* 5.1.6 virtio_net_hdr; num_buffers is absent for a legacy guest without VIRTIO_NET_F_MRG_RXBUF */
struct net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_length;
    uint16_t gso_size;
    uint16_t checksum_start;
    uint16_t checksum_offset;
    uint16_t num_buffers;
};

#define VIRTIO_NET_HDR_F_NEEDS_CSUM 1
#define VIRTIO_NET_HDR_F_DATA_VALID 2
#define VIRTIO_NET_HDR_GSO_NONE 0
#define VIRTIO_NET_HDR_GSO_TCPV4 1
#define VIRTIO_NET_HDR_GSO_TCPV6 4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#define VIRTIO_NET_HDR_GSO_ECN 0x80

/* 5.1.3 Feature bits that say what a virtio_net_hdr may ask for */
#define VIRTIO_NET_F_CSUM (1ULL << 0)
#define VIRTIO_NET_F_GUEST_CSUM (1ULL << 1)
#define VIRTIO_NET_F_GUEST_TSO4 (1ULL << 7)
#define VIRTIO_NET_F_GUEST_TSO6 (1ULL << 8)
#define VIRTIO_NET_F_GUEST_ECN (1ULL << 9)
#define VIRTIO_NET_F_HOST_TSO4 (1ULL << 11)
#define VIRTIO_NET_F_HOST_TSO6 (1ULL << 12)
#define VIRTIO_NET_F_HOST_ECN (1ULL << 13)
#define VIRTIO_NET_F_GUEST_USO4 (1ULL << 54)
#define VIRTIO_NET_F_GUEST_USO6 (1ULL << 55)
#define VIRTIO_NET_F_HOST_USO (1ULL << 56)

_Static_assert(sizeof(struct split_descriptor) == 16, "virtio 1.3, 2.7.5");
_Static_assert(offsetof(struct split_descriptor, flags) == 12, "virtio 1.3, 2.7.5");
_Static_assert(offsetof(struct split_available, ring) == 4, "virtio 1.3, 2.7.6");
_Static_assert(sizeof(struct used_element) == 8, "virtio 1.3, 2.7.8");
_Static_assert(offsetof(struct split_used, ring) == 4, "virtio 1.3, 2.7.8");
_Static_assert(sizeof(struct packed_descriptor) == 16, "virtio 1.3, 2.8.13");
_Static_assert(offsetof(struct packed_descriptor, flags) == 14, "virtio 1.3, 2.8.13");
_Static_assert(sizeof(struct net_header) == 12, "virtio 1.3, 5.1.6");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "that of virtio 1.3; rings and chains are read in whole words");
_Static_assert(sizeof(struct xdp_desc) == 16, "linux/if_xdp.h");

/* Newer than the headers of the oldest distribution we build on (Linux 6.6). */
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#endif
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0)
#endif
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9
#endif
#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif

#endif

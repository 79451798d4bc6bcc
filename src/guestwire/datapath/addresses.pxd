"""Which member of a network has which address: learnt from what they send; see addresses.pyx.

An address is its six bytes as a number, the first one lowest: bit 0 marks a group. Times are in seconds.
"""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.atomics cimport load_relaxed_u64
from guestwire.datapath.mutex cimport pthread_mutex_t

cdef enum:
    MOST_MEMBERS = 256
    MOST_ADDRESSES = 256        # learnt from one member
    BUCKET_STATIONS = 8         # two cache lines, which a core fetches together
    BUCKETS = 16384             # so that half of all places stay free even if every member has its most
    NOWHERE = -1
    CLAIMED = 0x8000            # in a station's word
    MEMBER_BITS = 16

cdef struct station:
    uint64_t word               # address, CLAIMED, 1 + member; 0: free
    uint64_t until              # when a learnt one is forgotten

cdef struct address_table:
    station *stations           # BUCKETS times BUCKET_STATIONS
    uint64_t secret             # odd; so that nobody can choose addresses that meet in one bucket
    # To be held by whoever changes a word.
    pthread_mutex_t lock
    uint32_t counts[MOST_MEMBERS]
    uint64_t full_until[MOST_MEMBERS]   # a member that has its most is not looked through again sooner

cdef inline station *bucket_of(const address_table *t, uint64_t address) noexcept nogil:
    # The upper bits of a product depend on all bits of its factors. Twice, since addresses in a row differ in
    # the upper bits alone: for some secrets, one product would put many of them in one bucket.
    cdef uint64_t product = address * t.secret
    return &t.stations[((product ^ product >> 32) * t.secret >> 50) * BUCKET_STATIONS]

cdef inline int addresses_find(const address_table *t, uint64_t address, uint64_t now) noexcept nogil:
    """Return the member with an address, or NOWHERE. Takes no lock."""
    cdef station *s = bucket_of(t, address)
    cdef uint64_t word
    cdef uint32_t i
    for i in range(BUCKET_STATIONS):
        word = load_relaxed_u64(&s[i].word)
        if word >> MEMBER_BITS == address and word:
            if word & CLAIMED or load_relaxed_u64(&s[i].until) > now:
                return <int>(word & (CLAIMED - 1)) - 1
            return NOWHERE
    return NOWHERE

# Whether addresses_learn has more to do for an address than to note the time, which is noted here. Takes no
# lock.
cdef bint addresses_is_news(
    address_table *t, uint64_t address, uint32_t member, uint64_t now, uint64_t until
) noexcept nogil

# Note that a member has sent from an address, which is then its own `until` that time. It may wait for others
# who change a word, each of whom is soon done; nothing else may be locked.
cdef void addresses_learn(
    address_table *t, uint64_t address, uint32_t member, uint64_t now, uint64_t until
) noexcept nogil

# Give an address to a member for good: until it is claimed by another one, or the member's are forgotten.
cdef void addresses_claim(address_table *t, uint64_t address, uint32_t member, uint64_t now) noexcept nogil

# Forget all addresses of a member that sends no more.
cdef void addresses_forget(address_table *t, uint32_t member) noexcept nogil

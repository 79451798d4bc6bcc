# cython: language_level=3
"""Which member of a network has which address.

Workers look addresses up without a lock: a station's word is one load, and the time beside it only says how
long the word is good for. A guest that sends from many addresses does not push out those of others: each
member has a share of the table, nothing that is still good is replaced, and a bucket without a free place
means that an address is not learnt, so that frames for it go to everybody.

Whoever changes a word holds the lock, for a few buckets at most: a worker may wait for it, and then what it
learns is learnt.
"""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.atomics cimport (
    load_relaxed_u32,
    load_relaxed_u64,
    store_relaxed_u32,
    store_relaxed_u64,
)
from guestwire.datapath.mutex cimport pthread_mutex_lock, pthread_mutex_unlock

cdef enum:
    STATIONS_AT_A_TIME = 512    # that a search looks at, then others have their turn


cdef inline uint64_t word_of(uint64_t address, uint32_t member) noexcept nogil:
    return address << MEMBER_BITS | (member + 1)


cdef inline uint32_t member_of(uint64_t word) noexcept nogil:
    return <uint32_t>(word & (CLAIMED - 1)) - 1


cdef inline void count(address_table *t, uint32_t member, int change) noexcept nogil:
    store_relaxed_u32(&t.counts[member], t.counts[member] + change)


cdef inline void replace(address_table *t, station *s, uint64_t word, uint64_t until) noexcept nogil:
    """Put a word in a station's place, 0 for none; the lock is held."""
    if s.word:
        count(t, member_of(s.word), -1)
    if word:
        count(t, member_of(word), 1)
    store_relaxed_u64(&s.until, until)
    store_relaxed_u64(&s.word, word)


cdef inline bint is_stale(const station *s, uint64_t now) noexcept nogil:
    return s.word and not s.word & CLAIMED and s.until <= now


cdef void forget(address_table *t, uint32_t member, uint64_t now, bint all_of_them) noexcept nogil:
    """Forget a member's addresses, or those that are too old; the lock is not held."""
    cdef station *s = t.stations
    cdef uint32_t i
    for _ in range(BUCKETS * BUCKET_STATIONS // STATIONS_AT_A_TIME):
        pthread_mutex_lock(&t.lock)
        for i in range(STATIONS_AT_A_TIME):
            if s[i].word and member_of(s[i].word) == member and (all_of_them or is_stale(&s[i], now)):
                replace(t, &s[i], 0, 0)
        pthread_mutex_unlock(&t.lock)
        s += STATIONS_AT_A_TIME


cdef station *place_for(address_table *t, uint64_t address, uint64_t now) noexcept nogil:
    """Return where an address is or may be put; NULL if all that is there is still good."""
    cdef station *s = bucket_of(t, address)
    cdef station *free_place = NULL
    cdef uint32_t i
    for i in range(BUCKET_STATIONS):
        if s[i].word and s[i].word >> MEMBER_BITS == address:
            return &s[i]
        if free_place == NULL and (s[i].word == 0 or is_stale(&s[i], now)):
            free_place = &s[i]
    return free_place


cdef bint addresses_is_news(
    address_table *t, uint64_t address, uint32_t member, uint64_t now, uint64_t until
) noexcept nogil:
    cdef station *s = bucket_of(t, address)
    cdef uint64_t word
    cdef uint32_t i
    for i in range(BUCKET_STATIONS):
        word = load_relaxed_u64(&s[i].word)
        if word >> MEMBER_BITS == address and word:
            if word == word_of(address, member):
                # Should the place be another's by now, that one is forgotten sooner or later than it should.
                store_relaxed_u64(&s[i].until, until)
                return False
            return not word & CLAIMED
    return load_relaxed_u64(&t.full_until[member]) <= now


cdef void addresses_learn(
    address_table *t, uint64_t address, uint32_t member, uint64_t now, uint64_t until
) noexcept nogil:
    cdef station *s
    if not addresses_is_news(t, address, member, now, until):
        return
    if load_relaxed_u32(&t.counts[member]) >= MOST_ADDRESSES:
        forget(t, member, now, False)
    pthread_mutex_lock(&t.lock)
    if t.counts[member] >= MOST_ADDRESSES:
        store_relaxed_u64(&t.full_until[member], now + 1)
    else:
        s = place_for(t, address, now)
        if s != NULL and not s.word & CLAIMED:
            replace(t, s, word_of(address, member), until)
    pthread_mutex_unlock(&t.lock)


cdef void addresses_claim(address_table *t, uint64_t address, uint32_t member, uint64_t now) noexcept nogil:
    cdef station *s
    pthread_mutex_lock(&t.lock)
    s = place_for(t, address, now)
    if s == NULL:
        s = bucket_of(t, address)
    replace(t, s, word_of(address, member) | CLAIMED, 0)
    pthread_mutex_unlock(&t.lock)


cdef void addresses_forget(address_table *t, uint32_t member) noexcept nogil:
    forget(t, member, 0, True)
    store_relaxed_u64(&t.full_until[member], 0)

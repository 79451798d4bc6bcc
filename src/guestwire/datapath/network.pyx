# cython: language_level=3
"""Those who are joined by a wire: their inlets, and where each address was last heard.

Workers find inlets here without a lock: an inlet, once made, stays for the network's life, and says itself
whether it is open.
"""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.addresses cimport (
    BUCKET_STATIONS,
    BUCKETS,
    CLAIMED,
    MEMBER_BITS,
    addresses_claim,
    addresses_forget,
    addresses_learn,
    station,
)
from guestwire.datapath.atomics cimport load_relaxed_u64, store_relaxed_u32
from guestwire.datapath.mutex cimport make_mutex, pthread_mutex_destroy


cdef class Network:
    """Those who are joined by a wire, and where each address was last heard.

    It lives as long as a port on it does. `join` and `leave` are called by one thread at a time.

    Attributes:
        name: what people call it.
        members: their names, by number.
    """

    def __cinit__(self):
        self.n = <network *>calloc(1, sizeof(network))
        if self.n == NULL:
            raise MemoryError
        make_mutex(&self.n.table.lock)
        self.n.table.stations = <station *>calloc(BUCKETS * BUCKET_STATIONS, sizeof(station))
        if self.n.table.stations == NULL:
            raise MemoryError

    def __init__(self, str name):
        self.name, self.members = name, {}
        self.n.table.secret = int.from_bytes(os.urandom(8), "little") | 1

    def __dealloc__(self):
        cdef uint32_t m, p
        if self.n == NULL:
            return
        for m in range(self.n.member_end):
            for p in range(MOST_PAIRS):
                if self.n.members[m].inlets[p] != NULL:
                    pthread_mutex_destroy(&self.n.members[m].inlets[p].lock)
                    free(self.n.members[m].inlets[p])
        pthread_mutex_destroy(&self.n.table.lock)
        free(self.n.table.stations)
        free(self.n)

    cdef inlet *_inlet(self, uint32_t member, uint32_t pair) except NULL:
        cdef inlet **at
        if member not in self.members or pair >= MOST_PAIRS:
            raise IndexError(f"wire {self.name} has no queue pair {pair} of a member {member}")
        at = &self.n.members[member].inlets[pair]
        if at[0] == NULL:
            at[0] = <inlet *>calloc(1, sizeof(inlet))
            if at[0] == NULL:
                raise MemoryError
            make_mutex(&at[0].lock)
        return at[0]

    def join(self, str name):
        """Become a member; return its number.

        Raises:
            IndexError: there are too many.
        """
        for number in range(MOST_MEMBERS):
            if number not in self.members:
                break
        else:
            raise IndexError(f"wire {self.name} has {MOST_MEMBERS:,} members already")
        self.members[number] = name
        store_relaxed_u32(&self.n.member_end, max(self.n.member_end, <uint32_t>number + 1))
        return number

    def leave(self, member):
        """Be a member no more; its ports are closed."""
        cdef uint32_t number = member
        with nogil:
            addresses_forget(&self.n.table, number)
        del self.members[member]

    def learn(self, member, bytes address, ageing):
        """Note that a member has an address, as if it had sent from there."""
        cdef uint64_t number = address_at(address)
        cdef uint64_t now = seconds_now()
        cdef uint64_t until = now + <uint64_t>ageing
        cdef uint32_t m = member
        with nogil:
            addresses_learn(&self.n.table, number, m, now, until)

    def claim(self, member, bytes address):
        """Give a member an address for as long as it is one, whoever else sends from there."""
        cdef uint64_t number = address_at(address)
        cdef uint64_t now = seconds_now()
        cdef uint32_t m = member
        with nogil:
            addresses_claim(&self.n.table, number, m, now)

    def addresses(self):
        """Return which member has which address now. For tests and tools."""
        cdef uint64_t now = seconds_now()
        cdef uint64_t word
        cdef uint32_t i
        known = {}
        for i in range(BUCKETS * BUCKET_STATIONS):
            word = load_relaxed_u64(&self.n.table.stations[i].word)
            if word and (word & CLAIMED or load_relaxed_u64(&self.n.table.stations[i].until) > now):
                address = int(word >> MEMBER_BITS).to_bytes(6, "little")
                known[address] = int(word & (CLAIMED - 1)) - 1
        return known

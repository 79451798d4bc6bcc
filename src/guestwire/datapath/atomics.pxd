"""Shared-memory accesses of atomics.h."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    uint16_t load_relaxed_u16(const uint16_t *p)
    uint32_t load_relaxed_u32(const uint32_t *p)
    uint64_t load_relaxed_u64(const uint64_t *p)
    uint16_t load_acquire_u16(const uint16_t *p)
    uint32_t load_acquire_u32(const uint32_t *p)
    uint64_t load_acquire_u64(const uint64_t *p)
    void store_relaxed_u16(uint16_t *p, uint16_t v)
    void store_relaxed_u32(uint32_t *p, uint32_t v)
    void store_relaxed_u64(uint64_t *p, uint64_t v)
    void store_release_u16(uint16_t *p, uint16_t v)
    void store_release_u32(uint32_t *p, uint32_t v)
    void store_release_u64(uint64_t *p, uint64_t v)
    void fence_seq_cst()
    void cpu_relax()
    void prefetch_write(const void *p)

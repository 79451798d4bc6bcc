/* Loads, stores and fences on memory that a guest or the kernel shares with us, named by meaning.
 *
 * Every access to shared memory goes through these: each is one access, neither torn nor repeated by the
 * compiler, and the ordering is the one written here on every architecture. The caller says beside each
 * ordered access what it orders and against whom.
 */
#ifndef GUESTWIRE_ATOMICS_H
#define GUESTWIRE_ATOMICS_H

#include <stdint.h>

#define GW_SHARED_ACCESS(bits)                                                                     \
    static inline uint##bits##_t load_relaxed_u##bits(const uint##bits##_t *p)                     \
    {                                                                                              \
        return __atomic_load_n(p, __ATOMIC_RELAXED);                                               \
    }                                                                                              \
    static inline uint##bits##_t load_acquire_u##bits(const uint##bits##_t *p)                     \
    {                                                                                              \
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);                                               \
    }                                                                                              \
    static inline void store_relaxed_u##bits(uint##bits##_t *p, uint##bits##_t v)                  \
    {                                                                                              \
        __atomic_store_n(p, v, __ATOMIC_RELAXED);                                                  \
    }                                                                                              \
    static inline void store_release_u##bits(uint##bits##_t *p, uint##bits##_t v)                  \
    {                                                                                              \
        __atomic_store_n(p, v, __ATOMIC_RELEASE);                                                  \
    }

GW_SHARED_ACCESS(16)
GW_SHARED_ACCESS(32)
GW_SHARED_ACCESS(64)

static inline void fence_seq_cst(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Tells the core that this is a busy wait, so that it yields to its sibling thread. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* Asks for a line that will be written. The compiler's own asks on x86-64 for one that will be read, unless it is
 * told that the machine knows prefetchw; a 64-bit one that does not takes it for a no-op. */
static inline void prefetch_write(const void *p)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1, 3);
#endif
}

#endif

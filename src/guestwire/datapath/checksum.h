/* The Internet checksum (RFC 1071): a ones' complement sum of 16-bit words.
 *
 * Sums are kept unfolded and in memory's byte order, which does not matter to them (RFC 1071, 2.B): what is
 * stored to memory as it is comes out right.
 */
#ifndef GUESTWIRE_CHECKSUM_H
#define GUESTWIRE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A third of the time where the processor has AVX2. A sanitizer is not ready yet when the loader asks which. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define CHECKSUM_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CHECKSUM_CLONES
#endif

/* Reduces a sum to at most 17 bits, so that others can be added to it without end. */
static inline uint64_t checksum_reduce(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    return sum;
}

/* The 16-bit sum; 0 only if all words were 0. */
static inline uint16_t checksum_fold(uint64_t sum)
{
    sum = checksum_reduce(sum);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* The sum of `length` bytes, 0 <= length < 2^34, the first of which begins a word. They need not be aligned.
 *
 * The loop is one that a compiler makes vectors of: 32-bit halves in 64-bit lanes never carry.
 */
CHECKSUM_CLONES static uint64_t checksum_sum(const uint8_t *data, size_t length)
{
    const uint8_t *end = data + (length & ~(size_t)7);
    uint64_t sum = 0, words;
    uint32_t word;

    for (; data < end; data += 8) {
        memcpy(&words, data, 8);
        sum += (words & 0xffffffff) + (words >> 32);
    }
    if (length & 4) {
        memcpy(&word, data, 4);
        sum += word;
        data += 4;
    }
    if (length & 2) {
        sum += (uint32_t)data[0] | (uint32_t)data[1] << 8;
        data += 2;
    }
    /* An odd byte is the first half of a word whose other half is 0. */
    if (length & 1)
        sum += data[0];
    return checksum_reduce(sum);
}

/* The sum of bytes that follow an odd number of others: the halves of their words change places. */
static inline uint64_t checksum_swap(uint64_t sum)
{
    return __builtin_bswap16(checksum_fold(sum));
}

#endif

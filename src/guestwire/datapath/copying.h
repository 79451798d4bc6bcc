/* Copies of frames, most of which are short: through registers, where the C library would first look for the right
 * loop. */
#ifndef GUESTWIRE_COPYING_H
#define GUESTWIRE_COPYING_H

#include <stdint.h>
#include <string.h>

/* 16 bytes at any address: one register and one access where the machine has vectors. */
typedef uint64_t copied16 __attribute__((vector_size(16), aligned(1), may_alias));

/* Copy a frame. All of a short one is read before any of it is written, and memmove does the others: the buffers of
 * a hostile guest may overlap. The first bytes and the last are copied, which overlap in the middle, so that there is
 * no branch for each length. */
static inline void copy_frame(uint8_t *to, const uint8_t *from, uint32_t length)
{
    const copied16 *first = (const copied16 *)from, *last = (const copied16 *)(from + length);
    copied16 *to_first = (copied16 *)to, *to_last = (copied16 *)(to + length);
    if (length - 32 <= 32) {
        copied16 a = first[0], b = first[1], y = last[-2], z = last[-1];
        to_first[0] = a, to_first[1] = b, to_last[-2] = y, to_last[-1] = z;
    } else if (length - 64 <= 64) {
        copied16 a = first[0], b = first[1], c = first[2], d = first[3];
        copied16 w = last[-4], x = last[-3], y = last[-2], z = last[-1];
        to_first[0] = a, to_first[1] = b, to_first[2] = c, to_first[3] = d;
        to_last[-4] = w, to_last[-3] = x, to_last[-2] = y, to_last[-1] = z;
    } else {
        memmove(to, from, length);
    }
}

#endif

"""What a loop over frames expects, so that the compiler keeps it straight and its values in registers."""

cdef extern from *:
    """
    #define GUESTWIRE_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
    """
    bint unlikely "GUESTWIRE_UNLIKELY"(bint condition) nogil

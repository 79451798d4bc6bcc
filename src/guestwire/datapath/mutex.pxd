"""POSIX mutexes. They are adaptive: a thread that waits looks for a while before it sleeps."""

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int PTHREAD_MUTEX_ADAPTIVE_NP
    int pthread_mutexattr_init(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_settype(pthread_mutexattr_t *attributes, int kind)
    int pthread_mutexattr_destroy(pthread_mutexattr_t *attributes)
    int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef inline void make_mutex(pthread_mutex_t *mutex) noexcept nogil:
    cdef pthread_mutexattr_t attributes
    pthread_mutexattr_init(&attributes)
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP)
    pthread_mutex_init(mutex, &attributes)
    pthread_mutexattr_destroy(&attributes)

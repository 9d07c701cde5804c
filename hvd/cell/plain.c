/* memcpy and its like without SSE: what is compiled into the cell may not touch the guest's x87 and SSE registers, which stay where they
 * are while the monitor runs. Not inlined by link-time optimisation: for lengths that it knows the compiler has its own moves, which take a
 * tenth of what a repeated one does. */
#include <stddef.h>
#include <stdint.h>

#define ITSELF __attribute__((noipa))

ITSELF void *memcpy(void *restrict to, const void *restrict from, size_t length)
{
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
    return result;
}

ITSELF void *memmove(void *to, const void *from, size_t length)
{
    if ((uintptr_t)to - (uintptr_t)from >= length)
        return memcpy(to, from, length);
    uint8_t *last_to = (uint8_t *)to + length - 1;
    const uint8_t *last_from = (const uint8_t *)from + length - 1;
    __asm__ volatile("std; rep movsb; cld" : "+D"(last_to), "+S"(last_from), "+c"(length) : : "memory");
    return to;
}

ITSELF void *memset(void *to, int value, size_t length)
{
    void *result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
    return result;
}

ITSELF int memcmp(const void *a, const void *b, size_t length)
{
    const uint8_t *x = a, *y = b;
    for (size_t i = 0; i < length; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}

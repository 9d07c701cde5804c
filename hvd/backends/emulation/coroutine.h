/* A stack of its own for the emulator, so that a hook deep inside it can leave the guest and come back: run() then has KVM_RUN's shape. */
#ifndef HV_COROUTINE_H
#define HV_COROUTINE_H

#include <stdbool.h>
#include <stddef.h>

struct hv_coroutine {
    void *stack; /* mapping, with a guard page at its low end */
    size_t stack_size;
    void *own_sp;    /* saved while the caller runs */
    void *caller_sp; /* saved while the coroutine runs */
};

/* entry never returns. False: no memory. */
bool hv_coroutine_create(struct hv_coroutine *, size_t stack_size, void (*entry)(void *), void *argument);
void hv_coroutine_destroy(struct hv_coroutine *);
void hv_coroutine_enter(struct hv_coroutine *); /* from the caller: run until it leaves */
void hv_coroutine_leave(struct hv_coroutine *); /* from inside: back to the caller */

#endif

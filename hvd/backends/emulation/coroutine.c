#include "coroutine.h"

#ifdef __x86_64__
#include <stdint.h>
#include <sys/mman.h>

/* Saves the callee-saved registers (System V ABI, section 3.2.1) and the stack pointer in *save, continues on `to`. */
__attribute__((naked, noinline)) static void switch_stack(void **save __attribute__((unused)), void *to __attribute__((unused)))
{
    __asm__("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
            "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
            "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

/* First return address of a new stack: r12 = entry, r13 = argument. */
__attribute__((naked, noinline)) static void start(void)
{
    __asm__("movq %r13, %rdi\n\tcallq *%r12\n\tud2");
}

bool hv_coroutine_create(struct hv_coroutine *co, size_t stack_size, void (*entry)(void *), void *argument)
{
    co->stack_size = stack_size;
    co->stack = mmap(NULL, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (co->stack == MAP_FAILED)
        return co->stack = NULL, false;
    mprotect(co->stack, 4096, PROT_NONE);
    uintptr_t top = ((uintptr_t)co->stack + stack_size) & ~(uintptr_t)15;
    uint64_t *sp = (uint64_t *)top;
    sp -= 2;                   /* start() begins here: a multiple of 16, as a call wants it */
    *--sp = (uintptr_t)start;  /* ret */
    *--sp = 0;                 /* rbp */
    *--sp = 0;                 /* rbx */
    *--sp = (uintptr_t)entry;  /* r12 */
    *--sp = (uintptr_t)argument; /* r13 */
    *--sp = 0;                 /* r14 */
    *--sp = 0;                 /* r15 */
    co->own_sp = sp;
    return true;
}

void hv_coroutine_destroy(struct hv_coroutine *co)
{
    if (co->stack)
        munmap(co->stack, co->stack_size);
    co->stack = NULL;
}

void hv_coroutine_enter(struct hv_coroutine *co) { switch_stack(&co->caller_sp, co->own_sp); }
void hv_coroutine_leave(struct hv_coroutine *co) { switch_stack(&co->own_sp, co->caller_sp); }
#endif

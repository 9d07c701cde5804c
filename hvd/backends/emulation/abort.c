/* Where QEMU gives up it ends its process, which here is the guest's: hardware that has no answer goes into shutdown instead. Nothing that
 * a guest can do is known to lead here since the task register is valid from the first instruction (vcpu.py); a snapshot made by hand, or
 * what nobody has found yet, may. Such a guest ends FAILED, with the reason, as after any other error of the translator. */
#include <stdio.h>

#include "shim.h"

#ifdef __x86_64__

static void (*original)(void);

static bool inside(const struct hv_emulator *e)
{
    const char *here = __builtin_frame_address(0), *stack = e->coroutine.stack;
    return here >= stack && here < stack + e->coroutine.stack_size;
}

static void give_up(void)
{
    struct hv_emulator *e = hv_hooks_running();
    if (!e || !inside(e)) /* not a guest's doing */
        original();
    e->gave_up = true;
    snprintf(e->exit.detail, sizeof e->exit.detail, "the translator gave up (exception %d, task register %#x with flags %#x)",
             HV_AT(int32_t, e->cpu, CPU_EXCEPTION_INDEX), HV_AT(struct segment_cache, e->env, ENV_TR).selector,
             HV_AT(struct segment_cache, e->env, ENV_TR).flags);
    HV_AT(int32_t, e->cpu, CPU_EXCEPTION_INDEX) = EXCP_INTERRUPT;
    e->unicorn.cpu_loop_exit_x86_64(e->cpu);
}

const struct hv_redirection hv_abort_redirection = { "abort", give_up, (void **)&original };
#endif

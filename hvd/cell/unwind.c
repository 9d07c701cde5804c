/* Faults of the guest: handlers run in hv_guarded(), to which hv_raise() and hv_abandon() unwind; then what was raised is delivered, up to
 * double and triple faults (Intel SDM vol. 3A, table 6-5). */
#include "debug.h"
#include "signals.h"

static struct {
    bool pending, has_error;
    unsigned vector;
    uint32_t error;
} raised;
static bool abandoned;
static void *unwind[5];

_Noreturn static void raise_exception(unsigned vector, bool has_error, uint32_t error)
{
    raised.pending = true;
    raised.vector = vector;
    raised.has_error = has_error;
    raised.error = error;
    if (cell.fault_eip_valid) {
        HV_CPU->eip = cell.fault_eip;
        cell.fault_eip_valid = false;
    }
    __builtin_longjmp(unwind, 1);
}

_Noreturn void hv_raise(unsigned vector) { raise_exception(vector, false, 0); }

_Noreturn void hv_raise_error(unsigned vector, uint32_t error) { raise_exception(vector, true, error); }

_Noreturn void hv_raise_page_fault(uint32_t linear, uint32_t error)
{
    HV_CPU->cr2 = linear;
    raise_exception(HV_PAGE_FAULT, true, error & ~HV_WALK_FAULT);
}

_Noreturn void hv_abandon(void)
{
    abandoned = true;
    raised.pending = false;
    cell.fault_eip_valid = false;
    __builtin_longjmp(unwind, 1);
}

__attribute__((noinline)) bool hv_guarded(void (*work)(void))
{
    if (__builtin_setjmp(unwind))
        return false;
    work();
    return true;
}

bool hv_attempt(void (*work)(void))
{
    void *outer[sizeof unwind / sizeof *unwind];
    __builtin_memcpy(outer, unwind, sizeof unwind);
    bool done = hv_guarded(work);
    __builtin_memcpy(unwind, outer, sizeof unwind);
    if (!done && abandoned)
        __builtin_longjmp(unwind, 1);
    raised.pending = raised.pending && done;
    return done;
}

/* ---- exceptions (SDM vol. 3A, table 6-5) */

enum class { BENIGN, CONTRIBUTORY, PAGE };

static enum class class_of(unsigned vector)
{
    if (vector == HV_PAGE_FAULT)
        return PAGE;
    return vector == HV_DE || (vector >= HV_TS && vector <= HV_GP) ? CONTRIBUTORY : BENIGN;
}

static struct {
    unsigned vector;
    bool has_error;
    uint32_t error;
} delivered;

/* The last page fault of the guest's programs: once its kernel has seen to it, they try the same again. */
static bool user_faulted;
static uint32_t user_fault;
static uint32_t kernel_fault, kernel_fault_eip; /* EIP 0: none */

/* RF in a fault's frame keeps the instruction's own breakpoint from stopping it again (deliver.c does not set it, which nobody else sees). */
static void deliver_it(void)
{
    if (hv_breaks_enabled() && delivered.vector != HV_DB)
        HV_CPU->eflags |= HV_RF;
    hv_deliver(delivered.vector, delivered.has_error, delivered.error, false);
}

static void shut_down(void)
{
    for (;;)
        hv_leave(HV_CELL_SHUTDOWN);
}

/* Deliver what was raised, and what is raised by that. */
void hv_deliver_raised(void)
{
    bool first = true;
    if (raised.pending && raised.vector == HV_PAGE_FAULT && HV_CPU->cpl == 3) {
        user_faulted = true;
        user_fault = HV_CPU->cr2;
    } else if (raised.pending && raised.vector == HV_PAGE_FAULT) {
        kernel_fault_eip = HV_CPU->eip;
        kernel_fault = HV_CPU->cr2;
    }
    if (raised.pending && hv_debugging)
        hv_debug_raised();
    while (raised.pending) {
        raised.pending = false;
        if (first) {
            delivered.vector = raised.vector;
            delivered.has_error = raised.has_error;
            delivered.error = raised.error;
        } else if (delivered.vector == HV_DOUBLE) {
            hv_guarded(shut_down);
            return;
        } else {
            enum class one = class_of(delivered.vector), two = class_of(raised.vector);
            bool twice = (one == CONTRIBUTORY && two == CONTRIBUTORY) || (one == PAGE && two != BENIGN);
            delivered.vector = twice ? HV_DOUBLE : raised.vector;
            delivered.has_error = twice || raised.has_error;
            delivered.error = twice ? 0 : raised.error;
        }
        first = false;
        hv_guarded(deliver_it);
    }
}

void hv_forget_raised(void) { raised.pending = false; }

bool hv_was_abandoned(void)
{
    bool was = abandoned;
    abandoned = false;
    return was;
}

bool hv_kernel_fault(uint32_t eip, uint32_t *linear)
{
    bool was = kernel_fault_eip && kernel_fault_eip == eip;
    *linear = kernel_fault;
    if (was)
        kernel_fault_eip = 0;
    return was;
}

bool hv_user_faulted(void) { return user_faulted; }

bool hv_user_fault(uint32_t *linear)
{
    bool was = user_faulted;
    user_faulted = false;
    *linear = user_fault;
    return was;
}

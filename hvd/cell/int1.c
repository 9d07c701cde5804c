/* INT1, the one-byte F1, as programs execute it natively: a #DB that is a trap, of which DR6 tells nothing (SDM vol. 2A, INT1). A host that is itself a guest may
 * be told of it with EIP still at the instruction, where it would be executed for ever. Which kind of host this is is found out once. */
#define _GNU_SOURCE
#include <signal.h>

#include "cell.h"
#include "signals.h"

extern const uint8_t hv_int1[]; /* forms.S */
static unsigned left; /* bytes of it that the host has yet to go beyond */

static void on_int1(int signal, siginfo_t *info, void *frame)
{
    (void)signal, (void)info;
    greg_t *rip = &((ucontext_t *)frame)->uc_mcontext.gregs[REG_RIP];
    left = *rip == (greg_t)(uintptr_t)hv_int1;
    *rip += left;
}

bool hv_int1_init(void)
{
    struct sigaction action = {.sa_sigaction = on_int1, .sa_flags = SA_SIGINFO}, before;
    sigset_t trap, mask;
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    if (sigaction(SIGTRAP, &action, &before) != 0 || sigprocmask(SIG_UNBLOCK, &trap, &mask) != 0)
        return false;
    ((void (*)(void))(uintptr_t)hv_int1)();
    return sigprocmask(SIG_SETMASK, &mask, NULL) == 0 && sigaction(SIGTRAP, &before, NULL) == 0;
}

void hv_int1_trap(void)
{
    uint32_t behind = HV_CPU->eip + left;
    HV_CPU->eip = behind;
    cell.fault_eip = behind - 1;
    cell.fault_eip_valid = true;
    hv_deliver(HV_DB, false, 0, false);
    cell.fault_eip_valid = false;
}

/* The guest's own breakpoint registers (Intel SDM vol. 3A, "Debug Registers"). While one is enabled nothing of the guest is executed unseen, as
 * with a debugger's breakpoints (debug.c): the processor's own registers would not be told apart from those of engine `breakpoint`, and see nothing of what the
 * monitor does for the guest.
 *
 * Not done: MOV SS and POP SS do not hold back what is met by the instruction behind them.
 */
#include "debug.h"

#include "cell.h"

#define ENABLED 0xffu      /* of DR7: L0 to G3 */
#define GENERAL_DETECT 0x2000u
#define DR6_BD 0x2000u     /* an access to debug registers was detected */
#define DR6_HITS 0xfu
enum { EXECUTE, WRITE, PORT, ACCESS }; /* of DR7, for each register */

static uint32_t hits;    /* registers, of what has been executed since the last look */
static uint32_t foreseen; /* of the instruction that the processor is to execute in a step */

bool hv_breaks_enabled(void) { return HV_CPU->dr[7] & ENABLED; }

static unsigned kind_of(unsigned index) { return HV_CPU->dr[7] >> (16 + 4 * index) & 3; }

static unsigned bytes_of(unsigned index)
{
    static const uint8_t bytes[4] = {1, 2, 8, 4};
    return bytes[HV_CPU->dr[7] >> (18 + 4 * index) & 3];
}

static bool is_enabled(unsigned index) { return HV_CPU->dr[7] >> 2 * index & 3; }

bool hv_breaks_watch(void)
{
    for (unsigned i = 0; i < 4; i++)
        if (is_enabled(i) && kind_of(i) != EXECUTE)
            return true;
    return false;
}

/* The registers that are met by that access; a bit for each. */
static uint32_t met(uint32_t address, unsigned size, bool port, bool write)
{
    uint32_t found = 0;
    for (unsigned i = 0; i < 4; i++) {
        unsigned kind = kind_of(i), bytes = bytes_of(i);
        bool wanted = port ? kind == PORT && HV_CPU->cr4 & HV_CR4_DE : kind == ACCESS || (kind == WRITE && write);
        uint32_t start = HV_CPU->dr[i] & ~(bytes - 1);
        if (is_enabled(i) && wanted && (address - start < bytes || start - address < size))
            found |= 1u << i;
    }
    return found;
}

void hv_breaks_access(uint32_t linear, unsigned size, bool write) { hits |= met(linear, size, false, write); }
void hv_breaks_port(uint16_t port, unsigned size) { hits |= met(port, size, true, false); }

void hv_breaks_foresee(void)
{
    foreseen = hits;
    hits = 0;
}

void hv_breaks_executed(void)
{
    hits |= foreseen;
    foreseen = 0;
}

void hv_breaks_forget(void) { hits = foreseen = 0; }

bool hv_breaks_hit(void) { return hits; }

void hv_breaks_trap(uint32_t cause)
{
    HV_CPU->dr[6] = (HV_CPU->dr[6] & ~DR6_HITS) | hits | cause;
    hits = 0;
    HV_CPU->dr[7] &= ~GENERAL_DETECT;
    hv_deliver(HV_DB, false, 0, false);
    hits = 0; /* its own frame's */
}

void hv_breaks_trap_here(void) { hv_breaks_trap(0); }

void hv_breaks_execute(void)
{
    uint32_t found = 0, linear = HV_CPU->segment[HV_CS].base + HV_CPU->eip;
    foreseen = 0;
    if (HV_CPU->eflags & HV_RF)
        return;
    for (unsigned i = 0; i < 4; i++)
        if (is_enabled(i) && kind_of(i) == EXECUTE && HV_CPU->dr[i] == linear)
            found |= 1u << i;
    if (!found)
        return;
    HV_CPU->dr[6] = (HV_CPU->dr[6] & ~DR6_HITS) | found;
    HV_CPU->dr[7] &= ~GENERAL_DETECT;
    hv_raise(HV_DB);
}

void hv_breaks_detect(void)
{
    if (!(HV_CPU->dr[7] & GENERAL_DETECT))
        return;
    HV_CPU->dr[6] |= DR6_BD;
    HV_CPU->dr[7] &= ~GENERAL_DETECT;
    hv_raise(HV_DB);
}

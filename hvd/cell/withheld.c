/* Programs that may not run natively now: their kernel has set CR0.TS or CR0.EM, which must stop their next x87, MMX or SSE instruction, or CR4.TSD,
 * which must stop RDTSC. In ring 3 of the host nothing does, so that these programs are translated, or executed by the monitor, until their kernel has
 * cleared the bit, as it does with the first two when such an instruction has told it that the program wants the FPU.
 */
#include "cell.h"
#include "paravirt.h"

#define MOST_AT_ONCE 256u /* instructions, before the clock is looked at */

bool hv_shows_processor(const struct hv_insn *insn)
{
    if (insn->map != HV_MAP_0F)
        return false;
    return insn->opcode == 0xa2 || (insn->opcode == 0x01 && insn->modrm == 0xd0); /* CPUID, XGETBV */
}

/* Something that a look at the whole state must follow, before the next instruction. */
static bool is_over(void) { return !hv_withheld() || HV_CPU->interrupt_shadow || HV_CPU->halted || hv_kicked() || hv_interrupts_wanted(); }

bool hv_withheld_interpret_one(void)
{
    struct hv_insn insn;
    hv_fetch_instruction(&insn);
    return !hv_shows_processor(&insn) && hv_interpret(&insn);
}

bool hv_withheld_interpret(void)
{
    for (unsigned i = 0; i < MOST_AT_ONCE; i++) {
        if (!hv_withheld_interpret_one())
            return false;
        if (is_over())
            break;
    }
    return true;
}

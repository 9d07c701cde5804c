/* Rewriting's engine `breakpoint`, the textbook's: kernel code runs natively from one place to the next at which something must be seen to.
 *
 * From EIP the code is scanned to the first instruction that is sensitive and does not trap, or that goes elsewhere. A breakpoint register
 * is set to it, the code runs natively up to there, the monitor executes that instruction, and so on from where it leads to. What traps by
 * itself needs no breakpoint. The registers are set through perf_event_open(2), whose signal comes before the instruction is executed.
 *
 * Where that place is only a few instructions away the monitor executes these, too.
 *
 * Pages of code that runs natively are write-protected: a store there is executed by the monitor, and what follows it is scanned anew.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "breakpoint.h"
#include "debug.h"
#include "pace.h"
#include "translate.h"

#define PAGE 4096u
#define MOST_SCANNED 512u /* bytes */
#define SHORT_RUN 24u     /* instructions: a breakpoint takes as long as a hundred that are interpreted */
#define RUNS_AT_ONCE 16u  /* that are interpreted before the time is looked at: some microseconds */

static struct perf_event_attr event;
static uint32_t set_to; /* 0 = nowhere yet */
bool hv_breakpoint_init(void)
{
    event = (struct perf_event_attr){
        .type = PERF_TYPE_BREAKPOINT, .size = sizeof event, .bp_type = HW_BREAKPOINT_X, .bp_addr = HV_LOW_END - 1, .bp_len = sizeof(long),
        .sample_period = 1, .exclude_kernel = 1, .exclude_hv = 1, .sigtrap = 1, .remove_on_exec = 1,
    };
    int fd = (int)syscall(SYS_perf_event_open, &event, 0, -1, -1, 0);
    if (fd < 0)
        return false;
    if (fd != HV_CELL_FD_BREAKPOINT && (dup2(fd, HV_CELL_FD_BREAKPOINT) < 0 || close(fd) != 0))
        return false;
    return true;
}

/* What ends a run: by opcode, a bit for each /reg of a group. */
#define ANY 0xff
static const uint8_t stops[][256] = {
    [HV_MAP_ONE] = {
        /* sensitive and not trapping: PUSH and POP of segment registers, MOV from and to them, PUSHF, POPF, LES, LDS */
        [0x06] = ANY, [0x07] = ANY, [0x0e] = ANY, [0x16] = ANY, [0x17] = ANY, [0x1e] = ANY, [0x1f] = ANY, [0x8c] = ANY, [0x8e] = ANY,
        [0x9c] = ANY, [0x9d] = ANY, [0xc4] = ANY, [0xc5] = ANY,
        /* transfers */
        [0x70 ... 0x7f] = ANY, [0x9a] = ANY, [0xc2] = ANY, [0xc3] = ANY, [0xca ... 0xcf] = ANY, [0xe0 ... 0xe3] = ANY, [0xe8 ... 0xeb] = ANY,
        [0xf1] = ANY, [0xff] = 0x3c,
        /* what CPUID hides (emulate.c) */
        [0xc6] = 0x80, [0xc7] = 0x80,
    },
    [HV_MAP_0F] = {
        /* SLDT to VERW, SGDT to INVLPG, LAR, LSL, SYSCALL, RDTSC, SYSENTER, PUSH and POP of FS and GS, CPUID, LSS, LFS, LGS */
        [0x00] = ANY, [0x01] = ANY, [0x02] = ANY, [0x03] = ANY, [0x05] = ANY, [0x31] = ANY, [0x34] = ANY, [0xa0 ... 0xa2] = ANY,
        [0xa8] = ANY, [0xa9] = ANY, [0xb2] = ANY, [0xb4] = ANY, [0xb5] = ANY,
        /* transfers */
        [0x80 ... 0x8f] = ANY,
        /* hidden */
        [0x0e] = ANY, [0x78] = ANY, [0x79] = ANY, [0xa6] = ANY, [0xa7] = ANY, [0xae] = 0xf0, [0xc7] = 0xf8,
    },
};
#undef ANY

static bool is_stop(const struct hv_insn *insn)
{
    if (insn->map == HV_MAP_VEX || insn->map == HV_MAP_3DNOW || hv_fpu_traps(hv_fpu_kind(insn)))
        return true;
    return insn->map < sizeof stops / sizeof *stops && stops[insn->map][insn->opcode] >> (insn->has_modrm ? insn->reg : 0) & 1;
}

static void set(uint32_t linear)
{
    if (linear == set_to)
        return;
    event.bp_addr = linear;
    if (ioctl(HV_CELL_FD_BREAKPOINT, PERF_EVENT_IOC_MODIFY_ATTRIBUTES, &event) != 0)
        hv_fail("the breakpoint register cannot be set to %#x: error %d", linear, errno);
    set_to = linear;
}

static void protect(uint32_t first, uint32_t end)
{
    for (uint32_t page = first / PAGE; page <= (end - 1) / PAGE; page++) {
        struct hv_walk walk;
        hv_walk(&walk, page * PAGE, false, false, true, false);
        if (!walk.error)
            hv_shadow_protect_frame(walk.physical, HV_FRAME_CODE);
    }
}

/* Something that a look at the whole state must follow, before the next instruction. */
static bool is_over(void) { return HV_CPU->interrupt_shadow || HV_CPU->halted || hv_debugging || hv_kicked() || hv_interrupts_wanted(); }

/* False: nothing was executed, the next instruction is the processor's. */
static bool interpret_run(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct hv_insn insn;
        hv_fetch_instruction(&insn);
        if (!hv_interpret(&insn))
            return i != 0;
        if (is_over())
            break;
    }
    return true;
}

/* One run, or what ended the last one. True: it is the processor's. */
static bool prepare(void)
{
    uint32_t base = HV_CPU->segment[HV_CS].base, eip = HV_CPU->eip;
    bool code32 = HV_CPU->segment[HV_CS].attributes & HV_SEGMENT_32;
    uint32_t stop = eip;
    unsigned count = 0;
    bool repeats = false;
    for (;; count++) {
        uint8_t bytes[HV_LONGEST_INSTRUCTION];
        unsigned available = hv_fetch_at(stop, bytes);
        struct hv_insn insn;
        if (!available || hv_decode(&insn, bytes, available, code32) != HV_DECODED) {
            if (stop == eip) { /* raises what it has */
                hv_emulate();
                return false;
            }
            break;
        }
        if (is_stop(&insn) || (HV_CPU->eflags & HV_TF)) {
            if (stop != eip)
                break;
            hv_census_executed(base + eip, &insn);
            hv_emulate();
            return false;
        }
        if (stop + insn.length - eip > MOST_SCANNED)
            break;
        stop += insn.length;
        repeats |= insn.repeat != HV_REPEAT_NONE;
    }
    if (count <= SHORT_RUN && !repeats && interpret_run(count))
        return false;
    protect(base + eip, base + stop);
    set(base + stop);
    return true;
}

bool hv_breakpoint_prepare(void)
{
    for (unsigned i = 0; i < RUNS_AT_ONCE; i++) {
        if (prepare())
            return true;
        if (is_over() || HV_CPU->cpl == 3 || (hv_pace_handling && HV_CPU->eflags & HV_IF))
            return false;
    }
    return false;
}

/* While a debugger has breakpoints or watchpoints, or steps, no instruction of the guest is executed unseen: the monitor interprets it, or,
 * what it cannot interpret (newer than SSE2) or would interpret otherwise than the processor executes it in ring 3 (PUSHF, STR, ...; under trap and
 * paravirt the guest must go wrong with a debugger, too, when it goes wrong without), it has executed by the processor in a single step.
 */
#include "debug.h"

#include "cell.h"
#include "paravirt.h"

enum { CAUSE_STEP = 1, CAUSE_BREAKPOINT, CAUSE_WATCHPOINT }; /* hvd/board/vcpu.py DebugCause */

bool hv_debugging, hv_watching;

static bool executed;   /* an instruction, since the last stop */
static bool over_halt;  /* it was HLT: the step ends where the interrupt goes */
static bool hit;        /* a watchpoint, at hit_address */
static bool called;     /* by the guest (docs/paravirtualisation.md) */
static uint32_t hit_address;
static struct hv_insn native; /* what the processor steps over */

static struct hv_cell_debug *wanted(void) { return &cell.area->debug; }

static uint32_t here(void) { return HV_CPU->segment[HV_CS].base + HV_CPU->eip; }

void hv_debug_forget(void) { executed = over_halt = hit = called = false; }

void hv_debug_changed(void)
{
    struct hv_cell_debug *debug = wanted();
    if (debug->breakpoint_count > HV_AREA_BREAKPOINTS)
        debug->breakpoint_count = HV_AREA_BREAKPOINTS;
    if (debug->watchpoint_count > HV_AREA_WATCHPOINTS)
        debug->watchpoint_count = HV_AREA_WATCHPOINTS;
    hv_debug_update();
    hv_debug_forget();
}

void hv_debug_update(void)
{
    const struct hv_cell_debug *debug = wanted();
    bool own = hv_breaks_enabled();
    hv_watching = debug->watchpoint_count || (own && hv_breaks_watch());
    hv_debugging = hv_watching || debug->breakpoint_count || debug->step || own;
    if (!own)
        hv_breaks_forget();
}

void hv_debug_access(uint32_t linear, unsigned size, bool write)
{
    const struct hv_cell_debug *debug = wanted();
    hv_breaks_access(linear, size, write);
    for (unsigned i = 0; i < debug->watchpoint_count && !hit; i++) {
        uint32_t address = debug->watchpoints[i].address, length = debug->watchpoints[i].length;
        bool overlaps = linear - address < length || address - linear < size;
        if (overlaps && (write ? debug->watchpoints[i].write : debug->watchpoints[i].read)) {
            hit = true;
            hit_address = linear - address < length ? linear : address;
        }
    }
}

/* ---- boundaries */

static bool at_breakpoint(void)
{
    const struct hv_cell_debug *debug = wanted();
    for (unsigned i = 0; i < debug->breakpoint_count; i++)
        if (debug->breakpoints[i] == here())
            return true;
    return false;
}

bool hv_debug_stops(void)
{
    if (HV_CPU->halted || over_halt)
        return false;
    return called || (executed && (hit || wanted()->step)) ? true : !wanted()->step && at_breakpoint();
}

void hv_debug_leave(void)
{
    struct hv_cell_exit *exit = &cell.area->exit;
    bool watchpoint = executed && hit, step = executed && wanted()->step;
    exit->size = 0;
    exit->value = watchpoint ? CAUSE_WATCHPOINT : step ? CAUSE_STEP : CAUSE_BREAKPOINT;
    exit->address = watchpoint ? hit_address : here();
    hv_debug_forget();
    cell.entry_ns = hv_host_ns();
    hv_leave(HV_CELL_DEBUG);
}

bool hv_debug_holds_interrupts(bool interrupt)
{
    if (!wanted()->step || HV_CPU->halted)
        return false;
    if (over_halt && interrupt) {
        over_halt = false; /* this one; then the step is over */
        return false;
    }
    return !over_halt;
}

void hv_debug_call(void) { called = true; }

void hv_debug_executed(void)
{
    executed = hv_debugging;
    hv_breaks_executed();
}

void hv_debug_raised(void)
{
    executed = hv_debugging;
    hv_breaks_forget();
    hit = false; /* what it accessed is accessed again when it is executed again */
}

/* ---- what the processor executes, and what it accesses then */

#define G(reg) (1u << (reg))
/* Instructions that show or change in ring 3 what is not the guest's, without a trap, or take a selector that such an instruction gave:
 * opcodes, and a bit for each /reg of them. When they do trap, they are emulated as without a debugger. */
static const struct { uint8_t map, opcode, groups; } untrapped[] = {
    {HV_MAP_ONE, 0x06, 0xff}, {HV_MAP_ONE, 0x0e, 0xff}, {HV_MAP_ONE, 0x16, 0xff}, {HV_MAP_ONE, 0x1e, 0xff}, {HV_MAP_ONE, 0x8c, 0xff},
    {HV_MAP_ONE, 0x9c, 0xff}, {HV_MAP_ONE, 0x9d, 0xff}, {HV_MAP_0F, 0x00, G(0) | G(1) | G(4) | G(5)}, {HV_MAP_0F, 0x01, G(0) | G(1) | G(4)},
    {HV_MAP_0F, 0x02, 0xff}, {HV_MAP_0F, 0x03, 0xff}, {HV_MAP_0F, 0x31, 0xff}, {HV_MAP_0F, 0xa0, 0xff}, {HV_MAP_0F, 0xa2, 0xff},
    {HV_MAP_0F, 0xa8, 0xff}, {HV_MAP_ONE, 0x07, 0xff}, {HV_MAP_ONE, 0x17, 0xff}, {HV_MAP_ONE, 0x1f, 0xff}, {HV_MAP_ONE, 0x8e, 0xff},
    {HV_MAP_ONE, 0x9a, 0xff}, {HV_MAP_ONE, 0xc4, 0xff}, {HV_MAP_ONE, 0xc5, 0xff}, {HV_MAP_ONE, 0xca, 0xff}, {HV_MAP_ONE, 0xcb, 0xff},
    {HV_MAP_ONE, 0xcf, 0xff}, {HV_MAP_ONE, 0xea, 0xff}, {HV_MAP_ONE, 0xff, G(3) | G(5)}, {HV_MAP_0F, 0xa1, 0xff}, {HV_MAP_0F, 0xa9, 0xff},
    {HV_MAP_0F, 0xb2, 0xff}, {HV_MAP_0F, 0xb4, 0xff}, {HV_MAP_0F, 0xb5, 0xff},
};

static bool is_untrapped(const struct hv_insn *insn)
{
    if ((cell.mode == HV_MODE_REWRITING || cell.mode == HV_MODE_BREAKPOINT) && HV_CPU->cpl < 3)
        return false; /* rewritten */
    if (insn->map == HV_MAP_0F && insn->opcode == 0x01 && insn->mod == 3)
        return true; /* XGETBV and the like, which CPUID hides from the kernel alone */
    for (unsigned i = 0; i < sizeof untrapped / sizeof *untrapped; i++)
        if (untrapped[i].map == insn->map && untrapped[i].opcode == insn->opcode)
            return untrapped[i].groups >> insn->reg & 1;
    return false;
}

/* Bytes of x87's memory operands, by opcode and /reg; 0: none, or only its address (SDM vol. 2B, appendix B). */
static const uint8_t x87_bytes[8][8] = {
    {4, 4, 4, 4, 4, 4, 4, 4}, {4, 0, 4, 4, 28, 2, 28, 2}, {4, 4, 4, 4, 4, 4, 4, 4}, {4, 4, 4, 4, 0, 10, 0, 10},
    {8, 8, 8, 8, 8, 8, 8, 8}, {8, 8, 8, 8, 108, 0, 108, 2}, {2, 2, 2, 2, 2, 2, 2, 2}, {2, 2, 2, 2, 10, 8, 10, 8},
};
static const uint8_t x87_stores[8] = {0, G(2) | G(3) | G(6) | G(7), 0, G(1) | G(2) | G(3) | G(7), 0, G(1) | G(2) | G(3) | G(6) | G(7), 0,
                                      G(1) | G(2) | G(3) | G(6) | G(7)};

/* Opcodes of MMX, SSE and AVX that store their memory operand (SDM vol. 2D, table A-3). */
static bool vector_stores(const struct hv_insn *insn)
{
    switch (insn->opcode) {
    case 0x11:
    case 0x13:
    case 0x17:
    case 0x29:
    case 0x2b:
    case 0x7f:
    case 0xd6:
    case 0xe7: return true;
    case 0x7e: return insn->repeat != HV_REPEAT_E;
    default: return false;
    }
}

/* Scalars by their prefix, halves, and whole registers. */
static unsigned vector_bytes(const struct hv_insn *insn)
{
    bool mmx_map = insn->map == HV_MAP_0F && ((insn->opcode >= 0x60 && insn->opcode <= 0x7f) || insn->opcode >= 0xd0);
    switch (insn->opcode) {
    case 0x12:
    case 0x13:
    case 0x16:
    case 0x17:
    case 0xd6: return 8;
    case 0x6e: return 4;
    case 0x7e: return insn->repeat == HV_REPEAT_E ? 8 : 4;
    case 0x6f:
    case 0x7f:
    case 0x70: return insn->operand_prefix || insn->repeat != HV_REPEAT_NONE ? 16 : 8;
    case 0x2e:
    case 0x2f: return insn->operand_prefix ? 8 : 4;
    case 0xc4: return 2;
    default: break;
    }
    if (insn->repeat == HV_REPEAT_E)
        return insn->opcode == 0xe6 ? 8 : 4;
    if (insn->repeat == HV_REPEAT_NE)
        return 8;
    return mmx_map && !insn->operand_prefix ? 8 : 16;
}

/* What an instruction does to the stack: bytes that it stores below ESP, and loads above it. */
static void watch_stack(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size, stored = 0, loaded = 0;
    switch (insn->opcode) {
    case 0x9a: stored = 2 * size; break;
    case 0xca:
    case 0xcb: loaded = 2 * size; break;
    case 0xcf: loaded = 3 * size; break;
    case 0x07:
    case 0x17:
    case 0x1f:
    case 0x9d:
    case 0xa1:
    case 0xa9: loaded = size; break;
    case 0x06:
    case 0x0e:
    case 0x16:
    case 0x1e:
    case 0x9c:
    case 0xa0:
    case 0xa8: stored = size; break;
    default: return;
    }
    uint32_t esp = HV_CPU->segment[HV_SS].base + HV_CPU->r[HV_ESP];
    if (stored)
        hv_debug_access(esp - stored, stored, true);
    if (loaded)
        hv_debug_access(esp, loaded, false);
}

/* Its memory operand: bytes, and whether they are stored. Of AVX no more than that it is 32 bytes at most. */
static unsigned native_operand(const struct hv_insn *insn, bool *stores)
{
    unsigned opcode = insn->opcode;
    if (insn->map == HV_MAP_ONE && opcode >= 0xd8 && opcode <= 0xdf) {
        *stores = x87_stores[opcode & 7] >> insn->reg & 1;
        return x87_bytes[opcode & 7][insn->reg];
    }
    if (insn->map == HV_MAP_ONE) {
        *stores = opcode == 0x8c;
        return opcode == 0x8c || opcode == 0x8e ? 2 : insn->operand_size + 2u;
    }
    if (insn->map == HV_MAP_0F && opcode < 4) {
        *stores = opcode < 2 && !(opcode == 0 && insn->reg > 3);
        return opcode == 1 && insn->reg < 2 ? 6 : 2;
    }
    if (insn->map == HV_MAP_0F && opcode >= 0xb2 && opcode <= 0xb5)
        return insn->operand_size + 2u;
    if (insn->map == HV_MAP_0F && opcode == 0xae) {
        *stores = insn->reg == 0 || insn->reg == 3 || insn->reg == 4;
        return insn->reg < 2 ? 512 : insn->reg < 4 ? 4 : 0;
    }
    *stores = (insn->map == HV_MAP_0F || (insn->map == HV_MAP_VEX && insn->vex_map == 1)) && vector_stores(insn);
    return insn->map == HV_MAP_VEX ? 32 : vector_bytes(insn);
}

/* The accesses of an instruction that the processor executes, before it does. */
static void watch_native(const struct hv_insn *insn)
{
    bool stores = false;
    if (!insn->has_modrm) {
        watch_stack(insn);
    } else if (insn->mod != 3) {
        unsigned bytes = native_operand(insn, &stores);
        if (bytes)
            hv_debug_access(HV_CPU->segment[hv_operand_segment(insn)].base + hv_operand_offset(insn), bytes, stores);
    }
}

bool hv_debug_execute(void)
{
    hv_breaks_execute();
    if (hv_paravirtual() && hv_gate_interpret())
        return true;
    hv_fetch_instruction(&native);
    bool halts = native.map == HV_MAP_ONE && native.opcode == 0xf4;
    if (!(hv_withheld() ? hv_shows_processor(&native) : is_untrapped(&native)) && hv_interpret(&native)) {
        over_halt = halts && wanted()->step;
        return true;
    }
    if (hv_watching)
        watch_native(&native);
    hv_breaks_foresee();
    return false;
}

/* TF, which was ours: PUSHF has stored it, POPF and IRET have loaded the guest's. */
void hv_debug_native(uint32_t flags)
{
    bool watching = hv_watching;
    hv_debug_executed();
    if (native.map != HV_MAP_ONE)
        return;
    if (native.opcode == 0x9d || native.opcode == 0xcf) {
        HV_CPU->eflags = (HV_CPU->eflags & ~HV_TF) | (flags & HV_TF);
    } else if (native.opcode == 0x9c && !(HV_CPU->eflags & HV_TF)) {
        hv_watching = false;
        uint32_t top = HV_CPU->segment[HV_SS].base + HV_CPU->r[HV_ESP];
        hv_write(top, 2, hv_read(top, 2) & ~(uint64_t)HV_TF);
        hv_watching = watching;
    }
}

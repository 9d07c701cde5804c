/* Jumps in the place of instructions of a native kernel that access devices' registers, INT n and IRET (jumps.h), which would be a signal each. The kernel's code segment
 * is flat, so that a near jump leads to the slot:
 *
 *   (2E) (2E) E9 displacement     5 to 7 bytes
 *
 * Where the instruction is shorter, the jump covers some behind it, which the monitor executes as well. Who jumps to one of those must meet a byte that
 * traps: prefixes, which mean nothing there, move the displacement such that they begin at its lower bytes, and the slot lies where these do.
 */
#include <string.h>

#include "emit.h"
#include "jumps.h"
#include "paravirt.h"
#include "rules.h"
#include "translate.h"

#define PAGE 4096u
#define JUMP 5u          /* bytes, but for prefixes */
#define MOST_PREFIXES 2u
#define PREFIX 0x2e
#define NEAR_RETURN 0xc3

/* Kernels look at such instructions before they put jumps there, and must not find ours. */
static bool is_nop(const struct hv_insn *insn)
{
    return insn->map == HV_MAP_0F ? insn->opcode == 0x1f : insn->opcode == 0x90 || (insn->opcode == 0x8d && insn->segment >= 0);
}

static bool is_conditional(const struct hv_insn *insn)
{
    return insn->map == HV_MAP_ONE ? insn->opcode >= 0x70 && insn->opcode <= 0x7f : insn->map == HV_MAP_0F && (insn->opcode & 0xf0) == 0x80;
}

/* Where the instructions behind the first begin, bit by bit, from its start; 0 = the jump must not cover one of them. */
static uint32_t starts_of(const uint8_t *at, unsigned available, unsigned first, unsigned bytes)
{
    uint32_t starts = 1;
    bool returned = false; /* what follows is never executed */
    for (unsigned i = first; i < bytes;) {
        struct hv_insn insn;
        if (hv_decode(&insn, at + i, available - i, true) != HV_DECODED)
            return 0;
        if (!hv_is_movable(&insn) && !is_conditional(&insn))
            return 0;
        if (is_nop(&insn) && !returned)
            return 0;
        returned |= insn.map == HV_MAP_ONE && insn.opcode == NEAR_RETURN;
        starts |= 1u << i;
        i += insn.length;
    }
    return starts;
}

bool hv_device_jump(struct hv_patch *patch, uint32_t index, uint8_t *file, uint8_t *copy, const uint8_t *page, uint32_t linear, uint32_t offset)
{
    struct hv_insn insn;
    unsigned available = PAGE - offset;
    if (hv_decode(&insn, page + offset, available, true) != HV_DECODED || hv_is_string(&insn))
        return false;
    for (unsigned prefixes = 0; prefixes <= MOST_PREFIXES; prefixes++) {
        unsigned bytes = prefixes + JUMP, low = prefixes + 1; /* low: where the displacement is */
        uint32_t starts = available < bytes ? 0 : starts_of(page + offset, available, insn.length, bytes);
        if (!starts || starts & ~(1u | 3u << low) || memcmp(copy + offset, page + offset, bytes) != 0)
            continue;
        uint32_t start = linear + offset, slot = hv_device_slot(index, start + bytes, starts >> low & 1, starts >> low & 2);
        if (!slot)
            return false;
        *patch = (struct hv_patch){.start = start, .site = start, .slot = slot, .bytes = HV_DEVICE_SLOT, .covers = (uint8_t)bytes, .of_kernel = true};
        struct hv_emitter e = {file + (slot - hv_device_slots())};
        hv_byte(&e, 0xea); /* jmp 0x33:next */
        hv_word32(&e, slot + 7);
        HV_CODE(&e, "\x33\0"
                    "\x41\xb8"); /* next: mov r8d, EIP */
        hv_word32(&e, start);
        hv_constant(&e, HV_R9, HV_CALLOUT_DEVICE);
        HV_CODE(&e, "\x49\xbb"); /* mov r11, the gate */
        hv_word64(&e, HV_CACHE);
        HV_CODE(&e, "\x41\xff\xe3"); /* jmp r11 */
        e.at = copy + offset;
        for (unsigned i = 0; i < prefixes; i++)
            hv_byte(&e, PREFIX);
        hv_byte(&e, 0xe9);
        hv_word32(&e, slot - (start + bytes));
        return true;
    }
    return false;
}

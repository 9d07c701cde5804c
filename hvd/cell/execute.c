/* Ordinary instructions, executed by the monitor: those that touch memory which cannot be mapped (MMIO), and steps of the debugger.
 *
 * All general-purpose instructions are here, but for strings.c and what is sensitive (sensitive.c); x87, MMX and SSE are in x87.c and sse.c.
 * Not checked: alignment (EFLAGS.AC).
 */
#include "alu.h"
#include "cell.h"

/* An operand that is read, or read and then written. */
struct place {
    bool memory;
    uint32_t linear;
    unsigned index, size;
};

/* write: a fault of the write is raised now, before anything has changed. */
static struct place locate(const struct hv_insn *insn, unsigned size, bool write)
{
    struct place place = {.memory = insn->mod != 3, .index = insn->rm, .size = size};
    if (place.memory) {
        place.linear = hv_operand_linear(insn, size, write);
        if (write)
            hv_check_write(place.linear, size);
    }
    return place;
}

static uint32_t get(const struct place *place)
{
    return place->memory ? (uint32_t)hv_read(place->linear, place->size) : hv_get_register(place->index, place->size);
}

static void put(const struct place *place, uint32_t value)
{
    if (place->memory)
        hv_write(place->linear, place->size, value);
    else
        hv_set_register(place->index, place->size, value);
}

static unsigned size_of(const struct hv_insn *insn)
{
    return insn->opcode & 1 ? insn->operand_size : 1;
}

/* ---- moves */

static bool move_to_rm(const struct hv_insn *insn, unsigned size, uint32_t value)
{
    hv_set_rm(insn, size, value);
    return hv_done(insn);
}

static bool move_to_register(const struct hv_insn *insn, unsigned index, unsigned size, uint32_t value)
{
    hv_set_register(index, size, value);
    return hv_done(insn);
}

static bool move_offset(const struct hv_insn *insn) /* A0-A3 */
{
    unsigned size = size_of(insn);
    bool store = insn->opcode & 2;
    uint32_t linear = hv_operand_linear(insn, size, store);
    if (store)
        hv_write(linear, size, hv_get_register(HV_EAX, size));
    else
        hv_set_register(HV_EAX, size, (uint32_t)hv_read(linear, size));
    return hv_done(insn);
}

static bool exchange(const struct hv_insn *insn)
{
    unsigned size = size_of(insn);
    struct place place = locate(insn, size, true);
    uint32_t ours = hv_get_register(insn->reg, size), theirs = get(&place);
    put(&place, ours);
    return move_to_register(insn, insn->reg, size, theirs);
}

static bool exchange_accumulator(const struct hv_insn *insn) /* 90-97, NOP and PAUSE among them */
{
    unsigned size = insn->operand_size, index = insn->opcode & 7;
    uint32_t other = hv_get_register(index, size);
    hv_set_register(index, size, hv_get_register(HV_EAX, size));
    return move_to_register(insn, HV_EAX, size, other);
}

static bool move_if(const struct hv_insn *insn) /* CMOVcc: reads in any case */
{
    uint32_t value = hv_get_rm(insn, insn->operand_size);
    if (hv_condition(insn->opcode & 15, HV_CPU->eflags))
        hv_set_register(insn->reg, insn->operand_size, value);
    return hv_done(insn);
}

static bool swap_bytes(const struct hv_insn *insn) /* BSWAP; of 16 bits it is undefined, and processors make it 0 */
{
    unsigned index = insn->opcode & 7;
    return move_to_register(insn, index, insn->operand_size, insn->operand_size == 2 ? 0 : __builtin_bswap32(HV_CPU->r[index]));
}

static bool translate(const struct hv_insn *insn) /* XLAT */
{
    uint32_t offset = HV_CPU->r[HV_EBX] + (HV_CPU->r[HV_EAX] & 0xff);
    if (insn->address_size == 2)
        offset &= 0xffff;
    unsigned segment = insn->segment >= 0 ? (unsigned)insn->segment : HV_DS;
    return move_to_register(insn, HV_EAX, 1, (uint32_t)hv_read(hv_linear(segment, offset, 1, false), 1));
}

static bool move_swapped(const struct hv_insn *insn) /* MOVBE */
{
    unsigned size = insn->operand_size;
    if (insn->mod == 3)
        hv_raise(HV_UD);
    uint32_t value = insn->opcode & 1 ? hv_get_register(insn->reg, size) : hv_get_rm(insn, size);
    value = size == 2 ? __builtin_bswap16((uint16_t)value) : __builtin_bswap32(value);
    return insn->opcode & 1 ? move_to_rm(insn, size, value) : move_to_register(insn, insn->reg, size, value);
}

/* ---- arithmetic */

/* a = a op b, but for CMP and TEST, which only set flags. */
static bool combine(const struct hv_insn *insn, enum hv_alu_operation operation, unsigned size, uint32_t b)
{
    bool writes = operation != HV_CMP && operation != HV_TEST;
    struct place place = locate(insn, size, writes);
    uint32_t flags = HV_CPU->eflags, result = hv_alu(operation, size, get(&place), b, &flags);
    if (writes)
        put(&place, result);
    HV_CPU->eflags = flags;
    return hv_done(insn);
}

static bool combine_register(const struct hv_insn *insn, enum hv_alu_operation operation, unsigned index, unsigned size, uint32_t b)
{
    uint32_t result = hv_alu(operation, size, hv_get_register(index, size), b, &HV_CPU->eflags);
    if (operation != HV_CMP && operation != HV_TEST)
        hv_set_register(index, size, result);
    return hv_done(insn);
}

static bool unary(const struct hv_insn *insn, enum hv_unary operation, unsigned size)
{
    struct place place = locate(insn, size, true);
    uint32_t flags = HV_CPU->eflags, result = hv_unary(operation, size, get(&place), &flags);
    put(&place, result);
    HV_CPU->eflags = flags;
    return hv_done(insn);
}

static bool unary_register(const struct hv_insn *insn, enum hv_unary operation) /* 40-4F */
{
    unsigned size = insn->operand_size, index = insn->opcode & 7;
    return move_to_register(insn, index, size, hv_unary(operation, size, hv_get_register(index, size), &HV_CPU->eflags));
}

static bool shift(const struct hv_insn *insn, uint8_t count)
{
    struct place place = locate(insn, size_of(insn), true);
    uint32_t flags = HV_CPU->eflags, result = hv_shift(insn->reg, place.size, get(&place), count, &flags);
    put(&place, result);
    HV_CPU->eflags = flags;
    return hv_done(insn);
}

static bool shift_double(const struct hv_insn *insn) /* SHLD A4 A5, SHRD AC AD */
{
    struct place place = locate(insn, insn->operand_size, true);
    uint8_t count = insn->opcode & 1 ? (uint8_t)HV_CPU->r[HV_ECX] : (uint8_t)insn->immediate;
    uint32_t flags = HV_CPU->eflags, b = hv_get_register(insn->reg, place.size);
    put(&place, hv_shift_double(insn->opcode & 8, place.size, get(&place), b, count, &flags));
    HV_CPU->eflags = flags;
    return hv_done(insn);
}

/* operation: 4 BT, 5 BTS, 6 BTR, 7 BTC. A bit number from a register reaches memory beyond the operand, before and behind it. */
static bool bit(const struct hv_insn *insn, unsigned operation, uint32_t number, bool reaches)
{
    unsigned size = insn->operand_size;
    bool writes = operation != 4;
    struct place place;
    if (insn->mod != 3 && reaches) {
        int32_t element = (int32_t)hv_sign_extended(number, size) >> (size == 2 ? 4 : 5);
        uint32_t offset = hv_operand_offset(insn) + (uint32_t)element * size;
        if (insn->address_size == 2)
            offset &= 0xffff;
        place = (struct place){.memory = true, .linear = hv_linear(hv_operand_segment(insn), offset, size, writes), .size = size};
        if (writes)
            hv_check_write(place.linear, size);
    } else {
        place = locate(insn, size, writes);
    }
    uint32_t flags = HV_CPU->eflags, result = hv_bit(operation, size, get(&place), number, &flags);
    if (writes)
        put(&place, result);
    HV_CPU->eflags = flags;
    return hv_done(insn);
}

static bool scan(const struct hv_insn *insn, enum hv_scan operation)
{
    unsigned size = insn->operand_size;
    uint32_t b = hv_get_rm(insn, size);
    return move_to_register(insn, insn->reg, size, hv_scan(operation, size, hv_get_register(insn->reg, size), b, &HV_CPU->eflags));
}

static bool multiply_by(const struct hv_insn *insn, uint32_t b) /* IMUL with three operands */
{
    unsigned size = insn->operand_size;
    uint32_t a = hv_get_rm(insn, size);
    return move_to_register(insn, insn->reg, size, hv_scan(HV_IMUL, size, a, b, &HV_CPU->eflags));
}

static bool multiply_or_divide(const struct hv_insn *insn) /* F6 and F7 /4-/7 */
{
    unsigned size = size_of(insn), high_index = size == 1 ? 4 : HV_EDX;
    bool is_signed = insn->reg & 1;
    uint32_t b = hv_get_rm(insn, size), low = hv_get_register(HV_EAX, size), high = hv_get_register(high_index, size);
    if (insn->reg < 6)
        hv_multiply(is_signed, size, &low, &high, b, &HV_CPU->eflags);
    else if (!hv_divide(is_signed, size, &low, &high, b, &HV_CPU->eflags))
        hv_raise(HV_DE);
    hv_set_register(HV_EAX, size, low);
    hv_set_register(high_index, size, high);
    return hv_done(insn);
}

static bool group3(const struct hv_insn *insn)
{
    unsigned size = size_of(insn);
    switch (insn->reg) {
    case 0:
    case 1: return combine(insn, HV_TEST, size, insn->immediate);
    case 2: return unary(insn, HV_NOT, size);
    case 3: return unary(insn, HV_NEG, size);
    default: return multiply_or_divide(insn);
    }
}

static bool exchange_add(const struct hv_insn *insn)
{
    unsigned size = size_of(insn);
    struct place place = locate(insn, size, true);
    uint32_t flags = HV_CPU->eflags, old = get(&place);
    uint32_t sum = hv_alu(HV_ADD, size, old, hv_get_register(insn->reg, size), &flags);
    if (place.memory)
        put(&place, sum);
    hv_set_register(insn->reg, size, old);
    if (!place.memory)
        put(&place, sum); /* last: both may be one register */
    HV_CPU->eflags = flags;
    return hv_done(insn);
}

static bool compare_exchange(const struct hv_insn *insn)
{
    unsigned size = size_of(insn);
    struct place place = locate(insn, size, true);
    uint32_t flags = HV_CPU->eflags, old = get(&place);
    hv_alu(HV_CMP, size, hv_get_register(HV_EAX, size), old, &flags);
    if (flags & HV_ZF) {
        put(&place, hv_get_register(insn->reg, size));
    } else {
        if (place.memory)
            put(&place, old); /* the processor always ends with a write */
        hv_set_register(HV_EAX, size, old);
    }
    HV_CPU->eflags = flags;
    return hv_done(insn);
}

static bool compare_exchange_8(const struct hv_insn *insn)
{
    uint32_t *r = HV_CPU->r, linear = hv_operand_linear(insn, 8, true);
    hv_check_write(linear, 8);
    uint64_t old = hv_read(linear, 8);
    bool equal = old == ((uint64_t)r[HV_EDX] << 32 | r[HV_EAX]);
    hv_write(linear, 8, equal ? (uint64_t)r[HV_ECX] << 32 | r[HV_EBX] : old);
    if (!equal) {
        r[HV_EAX] = (uint32_t)old;
        r[HV_EDX] = (uint32_t)(old >> 32);
    }
    HV_CPU->eflags = (HV_CPU->eflags & ~HV_ZF) | (equal ? HV_ZF : 0);
    return hv_done(insn);
}

static bool decimal(const struct hv_insn *insn)
{
    if (insn->opcode == 0xd4 && !insn->immediate)
        hv_raise(HV_DE);
    uint16_t ax = hv_decimal(insn->opcode, (uint16_t)HV_CPU->r[HV_EAX], (uint8_t)insn->immediate, &HV_CPU->eflags);
    return move_to_register(insn, HV_EAX, 2, ax);
}

static bool bound(const struct hv_insn *insn)
{
    unsigned size = insn->operand_size;
    uint32_t linear = hv_operand_linear(insn, 2 * size, false);
    int32_t index = (int32_t)hv_sign_extended(hv_get_register(insn->reg, size), size);
    int32_t lower = (int32_t)hv_sign_extended((uint32_t)hv_read(linear, size), size);
    int32_t upper = (int32_t)hv_sign_extended((uint32_t)hv_read(linear + size, size), size);
    if (index < lower || index > upper)
        hv_raise(HV_BR);
    return hv_done(insn);
}

static bool adjust_rpl(const struct hv_insn *insn) /* ARPL */
{
    uint32_t selector = hv_get_rm(insn, 2), rpl = HV_CPU->r[insn->reg] & 3;
    bool lower = (selector & 3) < rpl;
    if (lower)
        hv_set_rm(insn, 2, (selector & ~3u) | rpl);
    HV_CPU->eflags = (HV_CPU->eflags & ~HV_ZF) | (lower ? HV_ZF : 0);
    return hv_done(insn);
}

static bool store_flags(const struct hv_insn *insn) /* SAHF */
{
    uint32_t taken = HV_STATUS_FLAGS & 0xff;
    HV_CPU->eflags = (HV_CPU->eflags & ~taken) | (hv_get_register(4, 1) & taken);
    return hv_done(insn);
}

/* LFENCE, MFENCE, SFENCE, and CLFLUSH, of which the monitor has no need: it executes in order. */
static bool fence(const struct hv_insn *insn)
{
    if (insn->mod != 3 && insn->reg == 7)
        hv_operand_linear(insn, 1, false);
    else if (insn->mod != 3 || insn->reg < 5)
        return false;
    return hv_done(insn);
}

static bool change_flag(const struct hv_insn *insn, uint32_t clear, uint32_t toggle)
{
    HV_CPU->eflags = (HV_CPU->eflags & ~clear) ^ toggle;
    return hv_done(insn);
}

/* ---- which opcode is which */

static bool one_byte(const struct hv_insn *insn)
{
    unsigned opcode = insn->opcode, size = size_of(insn);
    switch (opcode) {
    case 0x27:
    case 0x2f:
    case 0x37:
    case 0x3f:
    case 0xd4:
    case 0xd5: return decimal(insn);
    case 0x40 ... 0x47: return unary_register(insn, HV_INC);
    case 0x48 ... 0x4f: return unary_register(insn, HV_DEC);
    case 0x62: return bound(insn);
    case 0x63: return adjust_rpl(insn);
    case 0x69:
    case 0x6b: return multiply_by(insn, hv_sign_extended(insn->immediate, insn->immediate_size));
    case 0x80 ... 0x83: return combine(insn, insn->reg, size, hv_sign_extended(insn->immediate, insn->immediate_size));
    case 0x84:
    case 0x85: return combine(insn, HV_TEST, size, hv_get_register(insn->reg, size));
    case 0x86:
    case 0x87: return exchange(insn);
    case 0x88:
    case 0x89: return move_to_rm(insn, size, hv_get_register(insn->reg, size));
    case 0x8a:
    case 0x8b: return move_to_register(insn, insn->reg, size, hv_get_rm(insn, size));
    case 0x8d: return move_to_register(insn, insn->reg, insn->operand_size, hv_operand_offset(insn));
    case 0x90 ... 0x97: return exchange_accumulator(insn);
    case 0x98: return move_to_register(insn, HV_EAX, insn->operand_size, hv_sign_extended(HV_CPU->r[HV_EAX], insn->operand_size / 2));
    case 0x99: return move_to_register(insn, HV_EDX, insn->operand_size,
                                       hv_sign_extended(HV_CPU->r[HV_EAX], insn->operand_size) >> 31 ? 0xffffffff : 0);
    case 0x9e: return store_flags(insn);
    case 0x9f: return move_to_register(insn, 4, 1, (HV_CPU->eflags & HV_STATUS_FLAGS & 0xff) | 2);
    case 0xa0 ... 0xa3: return move_offset(insn);
    case 0xa8:
    case 0xa9: return combine_register(insn, HV_TEST, HV_EAX, size, insn->immediate);
    case 0xb0 ... 0xb7: return move_to_register(insn, opcode & 7, 1, insn->immediate);
    case 0xb8 ... 0xbf: return move_to_register(insn, opcode & 7, insn->operand_size, insn->immediate);
    case 0xc0:
    case 0xc1: return shift(insn, (uint8_t)insn->immediate);
    case 0xc6:
    case 0xc7: return insn->reg == 0 && move_to_rm(insn, size, insn->immediate);
    case 0xd0:
    case 0xd1: return shift(insn, 1);
    case 0xd2:
    case 0xd3: return shift(insn, (uint8_t)HV_CPU->r[HV_ECX]);
    case 0xd6: return move_to_register(insn, HV_EAX, 1, HV_CPU->eflags & HV_CF ? 0xff : 0); /* SALC, which no manual has */
    case 0xd7: return translate(insn);
    case 0xf5: return change_flag(insn, 0, HV_CF);
    case 0xf6:
    case 0xf7: return group3(insn);
    case 0xf8: return change_flag(insn, HV_CF, 0);
    case 0xf9: return change_flag(insn, HV_CF, HV_CF);
    case 0xfc: return change_flag(insn, HV_DF, 0);
    case 0xfd: return change_flag(insn, HV_DF, HV_DF);
    case 0xfe:
    case 0xff: return insn->reg < 2 && unary(insn, insn->reg ? HV_DEC : HV_INC, size);
    default: break;
    }
    if (opcode >= 0x40)
        return false;
    switch (opcode & 7) {
    case 0:
    case 1: return combine(insn, opcode >> 3, size, hv_get_register(insn->reg, size));
    case 2:
    case 3: return combine_register(insn, opcode >> 3, insn->reg, size, hv_get_rm(insn, size));
    case 4:
    case 5: return combine_register(insn, opcode >> 3, HV_EAX, size, insn->immediate);
    default: return false;
    }
}

static bool two_byte(const struct hv_insn *insn)
{
    unsigned opcode = insn->opcode, size = insn->operand_size;
    bool f3 = insn->repeat == HV_REPEAT_E;
    switch (opcode) {
    case 0x0d:
    case 0x18 ... 0x1f: return hv_done(insn); /* prefetches and other hints */
    case 0x40 ... 0x4f: return move_if(insn);
    case 0x90 ... 0x9f: return move_to_rm(insn, 1, hv_condition(opcode & 15, HV_CPU->eflags));
    case 0xa3: return bit(insn, 4, hv_get_register(insn->reg, size), true);
    case 0xab: return bit(insn, 5, hv_get_register(insn->reg, size), true);
    case 0xb3: return bit(insn, 6, hv_get_register(insn->reg, size), true);
    case 0xbb: return bit(insn, 7, hv_get_register(insn->reg, size), true);
    case 0xba: return bit(insn, insn->reg, insn->immediate, false);
    case 0xa4:
    case 0xa5:
    case 0xac:
    case 0xad: return shift_double(insn);
    case 0xae: return insn->repeat == HV_REPEAT_NONE && fence(insn);
    case 0xaf: return scan(insn, HV_IMUL);
    case 0xb0:
    case 0xb1: return compare_exchange(insn);
    case 0xb6:
    case 0xb7: return move_to_register(insn, insn->reg, size, hv_get_rm(insn, opcode == 0xb6 ? 1 : 2));
    case 0xbe: return move_to_register(insn, insn->reg, size, hv_sign_extended(hv_get_rm(insn, 1), 1));
    case 0xbf: return move_to_register(insn, insn->reg, size, hv_sign_extended(hv_get_rm(insn, 2), 2));
    case 0xb8:
        if (!f3)
            hv_raise(HV_UD);
        return scan(insn, HV_POPCNT);
    case 0xbc: return scan(insn, f3 ? HV_TZCNT : HV_BSF);
    case 0xbd: return scan(insn, f3 ? HV_LZCNT : HV_BSR);
    case 0xc0:
    case 0xc1: return exchange_add(insn);
    case 0xc3: /* MOVNTI */
        if (insn->repeat != HV_REPEAT_NONE || insn->operand_prefix)
            hv_raise(HV_UD);
        return move_to_rm(insn, 4, HV_CPU->r[insn->reg]);
    case 0xc7: return insn->reg == 1 && insn->mod != 3 && compare_exchange_8(insn);
    case 0xc8 ... 0xcf: return swap_bytes(insn);
    default: return false;
    }
}

bool hv_execute(const struct hv_insn *insn)
{
    if (hv_flow(insn))
        return true;
    switch (insn->map) {
    case HV_MAP_ONE: return one_byte(insn);
    case HV_MAP_0F: return two_byte(insn);
    case HV_MAP_0F38: return (insn->opcode & ~1) == 0xf0 && insn->repeat != HV_REPEAT_NE && move_swapped(insn);
    default: return false;
    }
}

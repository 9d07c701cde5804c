#include "alu.h"

#include "cpu.h"

/* The instruction between the guest's flags and the taking of its own. The red zone below RSP may hold the compiler's values. */
#define NATIVE(code, outputs, ...) \
    __asm__ volatile("leaq -128(%%rsp), %%rsp\n\t" \
                     "pushq %[native]\n\tpopfq\n\t" code "\n\tpushfq\n\tpopq %[native]\n\t" \
                     "leaq 128(%%rsp), %%rsp" \
                     : [native] "+&r"(native), outputs \
                     : __VA_ARGS__ \
                     : "cc", "memory")
#define FLAGS_IN(flags) uint64_t native = (*(flags) & HV_STATUS_FLAGS) | 2
#define FLAGS_OUT(flags) (*(flags) = (*(flags) & ~HV_STATUS_FLAGS) | ((uint32_t)native & HV_STATUS_FLAGS))

#define AND_OUTPUT(...) __VA_ARGS__

/* name(size, a, b, flags): `mnemonic b, a`; the operand b as text for each size, and where it is. */
#define BINARY(name, mnemonic, b1, b2, b4, place) \
    static uint32_t name(unsigned size, uint32_t a, uint32_t b, uint32_t *flags) \
    { \
        FLAGS_IN(flags); \
        switch (size) { \
        case 1: NATIVE(mnemonic "b " b1 "%b[a]", [a] "+&r"(a), [b] place(b)); break; \
        case 2: NATIVE(mnemonic "w " b2 "%w[a]", [a] "+&r"(a), [b] place(b)); break; \
        default: NATIVE(mnemonic "l " b4 "%k[a]", [a] "+&r"(a), [b] place(b)); break; \
        } \
        FLAGS_OUT(flags); \
        return a; \
    }
#define ARITHMETIC(name) BINARY(do_##name, #name, "%b[b], ", "%w[b], ", "%k[b], ", "r")
#define BY_CL(name) BINARY(do_##name, #name, "%%cl, ", "%%cl, ", "%%cl, ", "c")
#define ALONE(name) BINARY(do_##name, #name, "", "", "", "r")

ARITHMETIC(add)
ARITHMETIC(or)
ARITHMETIC(adc)
ARITHMETIC(sbb)
ARITHMETIC(and)
ARITHMETIC(sub)
ARITHMETIC(xor)
ARITHMETIC(cmp)
ARITHMETIC(test)
BY_CL(rol)
BY_CL(ror)
BY_CL(rcl)
BY_CL(rcr)
BY_CL(shl)
BY_CL(shr)
BY_CL(sar)
ALONE(inc)
ALONE(dec)
ALONE(not)
ALONE(neg)

typedef uint32_t binary_function(unsigned size, uint32_t a, uint32_t b, uint32_t *flags);

uint32_t hv_alu(enum hv_alu_operation operation, unsigned size, uint32_t a, uint32_t b, uint32_t *flags)
{
    static binary_function *const functions[] = {do_add, do_or, do_adc, do_sbb, do_and, do_sub, do_xor, do_cmp, do_test};
    return functions[operation](size, a, b, flags);
}

uint32_t hv_unary(enum hv_unary operation, unsigned size, uint32_t a, uint32_t *flags)
{
    static binary_function *const functions[] = {do_inc, do_dec, do_not, do_neg};
    return functions[operation](size, a, 0, flags);
}

uint32_t hv_shift(unsigned operation, unsigned size, uint32_t a, uint8_t count, uint32_t *flags)
{
    static binary_function *const functions[] = {do_rol, do_ror, do_rcl, do_rcr, do_shl, do_shr, do_shl, do_sar};
    return functions[operation & 7](size, a, count, flags);
}

/* The same for instructions that have no form for bytes. */
#define WORDS(name, mnemonic) \
    static uint32_t name(unsigned size, uint32_t a, uint32_t b, uint32_t *flags) \
    { \
        FLAGS_IN(flags); \
        if (size == 2) \
            NATIVE(mnemonic "w %w[b], %w[a]", [a] "+&r"(a), [b] "r"(b)); \
        else \
            NATIVE(mnemonic "l %k[b], %k[a]", [a] "+&r"(a), [b] "r"(b)); \
        FLAGS_OUT(flags); \
        return a; \
    }
WORDS(do_bt, "bt")
WORDS(do_bts, "bts")
WORDS(do_btr, "btr")
WORDS(do_btc, "btc")
WORDS(do_bsf, "bsf")
WORDS(do_bsr, "bsr")
WORDS(do_tzcnt, "tzcnt")
WORDS(do_lzcnt, "lzcnt")
WORDS(do_popcnt, "popcnt")
WORDS(do_imul, "imul")

uint32_t hv_bit(unsigned operation, unsigned size, uint32_t a, uint32_t bit, uint32_t *flags)
{
    static binary_function *const functions[] = {do_bt, do_bts, do_btr, do_btc};
    return functions[operation & 3](size, a, bit, flags);
}

uint32_t hv_scan(enum hv_scan operation, unsigned size, uint32_t a, uint32_t b, uint32_t *flags)
{
    static binary_function *const functions[] = {do_bsf, do_bsr, do_tzcnt, do_lzcnt, do_popcnt, do_imul};
    return functions[operation](size, a, b, flags);
}

uint32_t hv_shift_double(bool right, unsigned size, uint32_t a, uint32_t b, uint8_t count, uint32_t *flags)
{
    FLAGS_IN(flags);
    if (right && size == 2)
        NATIVE("shrdw %%cl, %w[b], %w[a]", [a] "+&r"(a), AND_OUTPUT([b] "r"(b), "c"(count)));
    else if (right)
        NATIVE("shrdl %%cl, %k[b], %k[a]", [a] "+&r"(a), AND_OUTPUT([b] "r"(b), "c"(count)));
    else if (size == 2)
        NATIVE("shldw %%cl, %w[b], %w[a]", [a] "+&r"(a), AND_OUTPUT([b] "r"(b), "c"(count)));
    else
        NATIVE("shldl %%cl, %k[b], %k[a]", [a] "+&r"(a), AND_OUTPUT([b] "r"(b), "c"(count)));
    FLAGS_OUT(flags);
    return a;
}

/* MUL, IMUL, DIV and IDIV of AX, DX:AX and EDX:EAX. */
#define ACCUMULATOR(name, mnemonic) \
    static void name(unsigned size, uint32_t *low, uint32_t *high, uint32_t b, uint32_t *flags) \
    { \
        FLAGS_IN(flags); \
        uint32_t a = size == 1 ? (*low & 0xff) | *high << 8 : *low, d = *high; \
        switch (size) { \
        case 1: NATIVE(mnemonic "b %b[b]", AND_OUTPUT("+&a"(a), "+&d"(d)), [b] "r"(b)); break; \
        case 2: NATIVE(mnemonic "w %w[b]", AND_OUTPUT("+&a"(a), "+&d"(d)), [b] "r"(b)); break; \
        default: NATIVE(mnemonic "l %k[b]", AND_OUTPUT("+&a"(a), "+&d"(d)), [b] "r"(b)); break; \
        } \
        FLAGS_OUT(flags); \
        *low = size == 1 ? a & 0xff : a; \
        *high = size == 1 ? a >> 8 & 0xff : d; \
    }
ACCUMULATOR(do_mul, "mul")
ACCUMULATOR(do_imul_wide, "imul")
ACCUMULATOR(do_div, "div")
ACCUMULATOR(do_idiv, "idiv")

void hv_multiply(bool is_signed, unsigned size, uint32_t *low, uint32_t *high, uint32_t b, uint32_t *flags)
{
    (is_signed ? do_imul_wide : do_mul)(size, low, high, b, flags);
}

static int64_t sign_extended(uint64_t value, unsigned bits)
{
    return (int64_t)(value << (64 - bits)) >> (64 - bits);
}

bool hv_divide(bool is_signed, unsigned size, uint32_t *low, uint32_t *high, uint32_t b, uint32_t *flags)
{
    unsigned bits = 8 * size;
    uint64_t mask = (1ull << bits) - 1, dividend = (*high & mask) << bits | (*low & mask);
    if (!(b & mask))
        return false;
    if (is_signed) {
        int64_t n = sign_extended(dividend, 2 * bits), divisor = sign_extended(b & mask, bits);
        if (n == INT64_MIN && divisor == -1)
            return false;
        if (n / divisor != sign_extended((uint64_t)(n / divisor) & mask, bits))
            return false;
    } else if (dividend / (b & mask) > mask) {
        return false;
    }
    (is_signed ? do_idiv : do_div)(size, low, high, b, flags);
    return true;
}

/* SF, ZF and PF of a byte. */
static void set_result_flags(uint8_t value, uint32_t *flags)
{
    uint32_t kept = *flags & (HV_CF | HV_AF | HV_OF);
    hv_alu(HV_TEST, 1, value, value, flags);
    *flags = (*flags & ~(HV_CF | HV_AF | HV_OF)) | kept;
}

static uint16_t adjust_packed(bool subtract, uint16_t ax, uint32_t *flags)
{
    uint8_t al = (uint8_t)ax, correction = 0;
    uint32_t carry = 0, half = 0;
    if ((al & 15) > 9 || *flags & HV_AF) {
        correction = 6;
        half = HV_AF;
        if (subtract && al < 6)
            carry = HV_CF;
    }
    if (al > 0x99 || *flags & HV_CF) {
        correction += 0x60;
        carry = HV_CF;
    }
    al = (uint8_t)(subtract ? al - correction : al + correction);
    *flags = (*flags & ~(HV_CF | HV_AF)) | carry | half | (*flags & HV_CF);
    set_result_flags(al, flags);
    return (uint16_t)((ax & 0xff00) | al);
}

static uint16_t adjust_unpacked(bool subtract, uint16_t ax, uint32_t *flags)
{
    if ((ax & 15) > 9 || *flags & HV_AF) {
        ax = (uint16_t)(subtract ? ax - 0x106 : ax + 0x106);
        *flags |= HV_AF | HV_CF;
    } else {
        *flags &= ~(HV_AF | HV_CF);
    }
    ax &= 0xff0f;
    set_result_flags((uint8_t)ax, flags);
    return ax;
}

uint16_t hv_decimal(unsigned opcode, uint16_t ax, uint8_t imm, uint32_t *flags)
{
    uint8_t al = (uint8_t)ax;
    switch (opcode) {
    case 0x27:
    case 0x2f: return adjust_packed(opcode == 0x2f, ax, flags);
    case 0x37:
    case 0x3f: return adjust_unpacked(opcode == 0x3f, ax, flags);
    case 0xd4:
        ax = (uint16_t)(al / imm << 8 | al % imm);
        break;
    default:
        ax = (uint8_t)(al + (ax >> 8) * imm);
        break;
    }
    *flags &= ~(HV_CF | HV_AF | HV_OF);
    set_result_flags((uint8_t)ax, flags);
    return ax;
}

bool hv_condition(unsigned condition, uint32_t flags)
{
    bool carry = flags & HV_CF, zero = flags & HV_ZF, sign = flags & HV_SF, overflow = flags & HV_OF, result;
    switch (condition >> 1 & 7) {
    case 0: result = overflow; break;
    case 1: result = carry; break;
    case 2: result = zero; break;
    case 3: result = carry || zero; break;
    case 4: result = sign; break;
    case 5: result = flags & HV_PF; break;
    case 6: result = sign != overflow; break;
    default: result = zero || sign != overflow; break;
    }
    return result != (condition & 1);
}

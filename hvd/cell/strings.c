/* String instructions (Intel SDM vol. 1, 7.3.9): INS, OUTS, MOVS, CMPS, STOS, LODS, SCAS, repeated or not.
 *
 * Between two turns of a repeated one everything is architectural: registers are up to date and EIP is still at the instruction, which
 * goes on when it is executed again.
 */
#include "alu.h"
#include "cell.h"
#include "debug.h"

#define PAGE 4096u

struct string {
    const struct hv_insn *insn;
    unsigned size; /* of an element */
    unsigned done; /* elements of a turn */
};
static uint32_t values[HV_AREA_STRING]; /* of a turn of INS and OUTS: devices of the runner are far away */

static uint32_t source(const struct string *string)
{
    unsigned segment = string->insn->segment >= 0 ? (unsigned)string->insn->segment : HV_DS;
    return hv_linear(segment, hv_get_register(HV_ESI, string->insn->address_size), string->size, false);
}

static uint32_t destination(const struct string *string, bool write) /* always in ES */
{
    return hv_linear(HV_ES, hv_get_register(HV_EDI, string->insn->address_size), string->size, write);
}

static void advance(const struct string *string, unsigned index)
{
    uint32_t step = string->done * (HV_CPU->eflags & HV_DF ? -string->size : string->size);
    unsigned width = string->insn->address_size;
    hv_set_register(index, width, hv_get_register(index, width) + step);
}

static uint32_t read_source(const struct string *string)
{
    return (uint32_t)hv_read(source(string), string->size);
}

static uint16_t port(void)
{
    return (uint16_t)HV_CPU->r[HV_EDX];
}

/* Elements from this address on that INS or OUTS can do in one turn, because nothing comes between them: up to the page's end, in memory. */
static unsigned at_once(const struct string *string, unsigned segment, uint32_t linear)
{
    const struct hv_insn *insn = string->insn;
    bool flat = HV_CPU->segment[segment].limit == ~0u && insn->address_size == 4;
    if (insn->repeat == HV_REPEAT_NONE || !flat || HV_CPU->eflags & (HV_DF | HV_TF) || hv_debugging || !hv_in_memory(linear))
        return 1;
    unsigned room = (PAGE - linear % PAGE) / string->size, most = room < HV_AREA_STRING ? room : HV_AREA_STRING;
    uint32_t left = HV_CPU->r[HV_ECX];
    most = left < most ? left : most;
    return most ? most : 1;
}

static void ins(struct string *string)
{
    uint32_t linear = destination(string, true);
    hv_check_write(linear, string->size); /* before the device gives its datum away */
    string->done = hv_port_in_string(port(), string->size, values, at_once(string, HV_ES, linear));
    for (unsigned i = 0; i < string->done; i++)
        hv_write(linear + i * string->size, string->size, values[i]);
    advance(string, HV_EDI);
}

static void outs(struct string *string)
{
    uint32_t linear = source(string);
    values[0] = (uint32_t)hv_read(linear, string->size);
    unsigned segment = string->insn->segment >= 0 ? (unsigned)string->insn->segment : HV_DS, count = at_once(string, segment, linear);
    for (unsigned i = 1; i < count; i++)
        values[i] = (uint32_t)hv_read(linear + i * string->size, string->size);
    string->done = hv_port_out_string(port(), string->size, values, count);
    advance(string, HV_ESI);
}

static void movs(struct string *string)
{
    uint32_t from = source(string), to = destination(string, true);
    hv_check_read(from, string->size); /* its faults come first; and both before a device's register is read */
    hv_check_write(to, string->size);
    hv_write(to, string->size, (uint32_t)hv_read(from, string->size));
    advance(string, HV_ESI);
    advance(string, HV_EDI);
}

static void cmps(struct string *string)
{
    uint32_t b = (uint32_t)hv_read(destination(string, false), string->size), a = read_source(string); /* in this order, as processors do it */
    hv_alu(HV_CMP, string->size, a, b, &HV_CPU->eflags);
    advance(string, HV_ESI);
    advance(string, HV_EDI);
}

static void stos(struct string *string)
{
    hv_write(destination(string, true), string->size, hv_get_register(HV_EAX, string->size));
    advance(string, HV_EDI);
}

static void lods(struct string *string)
{
    hv_set_register(HV_EAX, string->size, read_source(string));
    advance(string, HV_ESI);
}

static void scas(struct string *string)
{
    uint32_t b = (uint32_t)hv_read(destination(string, false), string->size);
    hv_alu(HV_CMP, string->size, hv_get_register(HV_EAX, string->size), b, &HV_CPU->eflags);
    advance(string, HV_EDI);
}

/* Between two turns: does something else come first? Interrupts are looked for now and then, as that may cost a clock reading. */
static bool interrupted(unsigned turns)
{
    return HV_CPU->eflags & HV_TF || hv_debugging || hv_kicked() || (turns % 16 == 0 && hv_interrupts_wanted());
}

bool hv_strings(const struct hv_insn *insn)
{
    static void (*const turns[])(struct string *) = {
        [0x6c] = ins, [0x6e] = outs, [0xa4] = movs, [0xa6] = cmps, [0xaa] = stos, [0xac] = lods, [0xae] = scas,
    };
    unsigned opcode = insn->opcode & ~1u;
    if (insn->map != HV_MAP_ONE || opcode >= sizeof turns / sizeof *turns || !turns[opcode])
        return false;

    struct string string = {.insn = insn, .size = insn->opcode & 1 ? insn->operand_size : 1, .done = 1};
    bool compares = opcode == 0xa6 || opcode == 0xae;
    if (opcode == 0x6c || opcode == 0x6e)
        hv_check_io(port(), string.size);
    if (insn->repeat == HV_REPEAT_NONE) {
        turns[opcode](&string);
        return hv_done(insn);
    }
    unsigned width = insn->address_size;
    for (unsigned done = 1;; done++) {
        uint32_t left = hv_get_register(HV_ECX, width);
        if (!left)
            return hv_done(insn);
        turns[opcode](&string);
        if (opcode == 0x6c || opcode == 0x6e)
            hv_cross_next();
        left -= string.done;
        hv_set_register(HV_ECX, width, left);
        bool zero = HV_CPU->eflags & HV_ZF;
        if (!left || (compares && zero != (insn->repeat == HV_REPEAT_E)))
            return hv_done(insn);
        if (interrupted(done))
            return true;
    }
}

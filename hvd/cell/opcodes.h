/* Which rule an opcode has: rules.c writes the code for it. */
#ifndef HV_OPCODES_H
#define HV_OPCODES_H

#include "rules.h"

/* How an opcode is translated. */
enum rule {
    MONITOR = 0, /* not here */
    PLAIN,       /* COPY; without prefixes byte by byte, if it names no memory or memory not by a displacement only */
    COPY,        /* the same in 64-bit code, but for the memory operand's form */
    NO_REX,      /* 40-4F: INC and DEC */
    PUSH_REGISTER, POP_REGISTER, PUSH_ALL, POP_ALL, PUSH_IMMEDIATE, PUSH_SEGMENT, JCC, JCC_NEAR, ALIAS_80, FROM_SEGMENT, POP_MEMORY, PUSH_FLAGS,
    POP_FLAGS, TO_SEGMENT, POP_SEGMENT, INTERRUPT_RETURN, ABSOLUTE, STRING, RETURN, LEAVE, LOOP, CALL, JUMP, CLEAR_INTERRUPT, SET_INTERRUPT, GROUP_FF, FROM_CONTROL, GROUP_AE, GROUP_C7,
    COPY_TO_END, READ_TIME, PORT_OF_BYTE,
};

enum rule hv_rule(const struct hv_insn *);
bool hv_is_narrow(const struct hv_insn *, enum rule); /* it pushes, pops or branches with 16 bits, which kernels do not do */
bool hv_may_copy(const struct hv_insn *);             /* of COPY: this form, too */

#endif

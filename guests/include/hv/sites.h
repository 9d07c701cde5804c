/* Records of replaceable instructions (docs/hvpvcc.md), in the section .hvpv.sites of a kernel that hvpvcc built. The section is not
 * loaded; it is an array of struct hv_site in no order. */
#ifndef HV_SITES_H
#define HV_SITES_H

#include <stdint.h>

/* What stands at a site. Only a hint for people: who replaces a site looks at its bytes. */
enum hv_site_kind {
    HV_SITE_AREA, /* no instruction: address and pages (in `length`) of the room for thunks */
    HV_SITE_NONE = HV_SITE_AREA,
    HV_SITE_CLI, HV_SITE_STI, HV_SITE_PUSHF, HV_SITE_POPF, HV_SITE_IRET, HV_SITE_HLT, HV_SITE_LGDT, HV_SITE_LIDT, HV_SITE_LLDT, HV_SITE_LTR,
    HV_SITE_SGDT, HV_SITE_SIDT, HV_SITE_SLDT, HV_SITE_STR, HV_SITE_LMSW, HV_SITE_SMSW, HV_SITE_CLTS, HV_SITE_RDMSR, HV_SITE_WRMSR,
    HV_SITE_RDTSC, HV_SITE_RDTSCP, HV_SITE_RDPMC, HV_SITE_CPUID, HV_SITE_INVLPG, HV_SITE_INVD, HV_SITE_WBINVD, HV_SITE_INVPCID, HV_SITE_IN,
    HV_SITE_OUT, HV_SITE_INS, HV_SITE_OUTS, HV_SITE_LAR, HV_SITE_LSL, HV_SITE_VERR, HV_SITE_VERW, HV_SITE_FAR_JUMP, HV_SITE_FAR_CALL,
    HV_SITE_FAR_RETURN, HV_SITE_SYSEXIT, HV_SITE_MONITOR, HV_SITE_MWAIT, HV_SITE_XGETBV, HV_SITE_XSETBV, HV_SITE_LOAD_FAR, HV_SITE_MOV_FROM_CR,
    HV_SITE_MOV_TO_CR, HV_SITE_MOV_FROM_DR, HV_SITE_MOV_TO_DR, HV_SITE_MOV_FROM_SEGMENT, HV_SITE_MOV_TO_SEGMENT, HV_SITE_PUSH_SEGMENT,
    HV_SITE_POP_SEGMENT, HV_SITE_VM, HV_SITE_ACCESS_FLAG,
    HV_SITE_KINDS
};

struct hv_site {
    uint32_t address; /* linear; of the first byte that may be replaced */
    uint8_t kind;     /* enum hv_site_kind */
    uint8_t length;   /* bytes that may be replaced: the instruction and the no-operations around it */
    uint8_t original; /* bytes of the instruction */
    uint8_t lead;     /* bytes of no-operations before it: of those that keep interrupts off until the next instruction is done */
};

#endif

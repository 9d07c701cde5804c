/* Handlers of privileged and sensitive instructions, between the table (sensitive.c) and those who are not beside it. */
#ifndef HV_SENSITIVE_H
#define HV_SENSITIVE_H

#include "cell.h"

enum hv_after { NEXT /* EIP moves on behind it */, GONE /* elsewhere */ };

static inline void require_supervisor(void)
{
    if (HV_CPU->cpl)
        hv_raise_error(HV_GP, 0);
}

static inline uint32_t behind(const struct hv_insn *insn) { return HV_CPU->eip + insn->length; }

/* control.c */
enum hv_after hv_execute_mov_from_control(const struct hv_insn *);
enum hv_after hv_execute_mov_to_control(const struct hv_insn *);
enum hv_after hv_execute_mov_debug(const struct hv_insn *);
enum hv_after hv_execute_rdmsr(const struct hv_insn *);
enum hv_after hv_execute_wrmsr(const struct hv_insn *);
enum hv_after hv_execute_rdtsc(const struct hv_insn *);
enum hv_after hv_execute_rdpmc(const struct hv_insn *);
enum hv_after hv_execute_cpuid(const struct hv_insn *);
enum hv_after hv_execute_cache(const struct hv_insn *);
enum hv_after hv_execute_clts(const struct hv_insn *);
enum hv_after hv_execute_lmsw(const struct hv_insn *);

#endif

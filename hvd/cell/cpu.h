/* The virtual processor: its architectural state, as Intel's SDM names it. Canonical at instruction boundaries only. */
#ifndef HV_CPU_H
#define HV_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include "decode.h"

/* attributes: bits 8-23 of the descriptor's second word, in place (hvd/board/vcpu.py Segment). */
struct hv_segment {
    uint32_t base, limit, attributes;
    uint16_t selector, reserved;
};
#define HV_SEGMENT_TYPE(s) ((s)->attributes >> 8 & 15)
#define HV_SEGMENT_DPL(s) ((s)->attributes >> 13 & 3)
#define HV_SEGMENT_S 0x1000u       /* code or data */
#define HV_SEGMENT_PRESENT 0x8000u
#define HV_SEGMENT_32 0x400000u    /* D/B */
#define HV_SEGMENT_PAGES 0x800000u /* G */

struct hv_table {
    uint32_t base;
    uint16_t limit, reserved;
};

struct hv_cpu {
    uint32_t r[8]; /* HV_EAX.. */
    uint32_t eip;
    uint32_t eflags; /* the guest's, IF and IOPL included, whatever the host's are */
    struct hv_segment segment[HV_SEGMENTS];
    uint32_t cr0, cr2, cr3, cr4;
    uint32_t dr[8];
    struct hv_table gdt, idt;
    uint8_t cpl;
    uint8_t halted;           /* in HLT */
    uint8_t interrupt_shadow; /* behind STI or MOV SS */
    uint8_t nmi_blocked, nmi_pending;
    uint8_t injected;         /* injected_vector waits */
    uint8_t injected_vector;
    uint8_t reserved;
    uint32_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint32_t user_limit;      /* paravirt: programs have no pages from there on; 0 = not known */
    uint64_t pat, mtrr_default, misc_enable, efer;
    uint64_t tsc_offset;      /* of the board's virtual clock; added */
    uint8_t fxsave[512] __attribute__((aligned(16))); /* x87 and SSE; valid at exits */
};

#define HV_CF 0x1u
#define HV_PF 0x4u
#define HV_AF 0x10u
#define HV_ZF 0x40u
#define HV_SF 0x80u
#define HV_TF 0x100u
#define HV_IF 0x200u
#define HV_DF 0x400u
#define HV_OF 0x800u
#define HV_IOPL 0x3000u
#define HV_NT 0x4000u
#define HV_RF 0x10000u
#define HV_VM 0x20000u
#define HV_AC 0x40000u
#define HV_ID 0x200000u
#define HV_STATUS_FLAGS (HV_CF | HV_PF | HV_AF | HV_ZF | HV_SF | HV_OF)
#define HV_DR6_BS 0x4000u /* a single step */
#define HV_CR0_PE 0x1u
#define HV_CR0_MP 0x2u
#define HV_CR0_TS 0x8u
#define HV_CR0_EM 0x4u
#define HV_CR0_WP 0x10000u
#define HV_CR0_AM 0x40000u
#define HV_CR0_PG 0x80000000u
#define HV_CR4_TSD 4u
#define HV_CR4_DE 8u
#define HV_CR4_PSE 0x10u
#define HV_CR4_PAE 0x20u
#define HV_CR4_PGE 0x80u
#define HV_CR4_OSFXSR 0x200u
#define HV_CR4_OSXMMEXCPT 0x400u
#define HV_CR4_UMIP 0x800u

enum hv_vector {
    HV_DE = 0, HV_DB = 1, HV_NMI = 2, HV_BP = 3, HV_OF_TRAP = 4, HV_BR = 5, HV_UD = 6, HV_NM = 7, HV_DOUBLE = 8, HV_TS = 10, HV_NP = 11, HV_STACK = 12,
    HV_GP = 13, HV_PAGE_FAULT = 14, HV_MF = 16, HV_ALIGNMENT = 17, HV_XM = 19,
};

#endif

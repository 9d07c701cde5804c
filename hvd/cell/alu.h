/* The arithmetic of IA-32 instructions, on values.
 *
 * Each operation is executed by the host's own processor with the guest's status flags loaded, and its flags are taken back: so what the
 * manuals leave undefined comes out as it would have natively. size: bytes, 1, 2 or 4. flags: a whole EFLAGS, of which only status flags
 * are read and changed.
 */
#ifndef HV_ALU_H
#define HV_ALU_H

#include <stdbool.h>
#include <stdint.h>

/* In the order of opcode bits 3-5 and of group 1's /reg. */
enum hv_alu_operation { HV_ADD, HV_OR, HV_ADC, HV_SBB, HV_AND, HV_SUB, HV_XOR, HV_CMP, HV_TEST };
uint32_t hv_alu(enum hv_alu_operation, unsigned size, uint32_t a, uint32_t b, uint32_t *flags);

enum hv_unary { HV_INC, HV_DEC, HV_NOT, HV_NEG };
uint32_t hv_unary(enum hv_unary, unsigned size, uint32_t a, uint32_t *flags);

/* group 2's /reg: ROL ROR RCL RCR SHL SHR SHL SAR */
uint32_t hv_shift(unsigned operation, unsigned size, uint32_t a, uint8_t count, uint32_t *flags);
uint32_t hv_shift_double(bool right, unsigned size, uint32_t a, uint32_t b, uint8_t count, uint32_t *flags);

/* group 8's /reg: BT 4, BTS 5, BTR 6, BTC 7; bit: modulo the operand's */
uint32_t hv_bit(unsigned operation, unsigned size, uint32_t a, uint32_t bit, uint32_t *flags);

/* Into a register that held a, from b; size 2 or 4. Without TZCNT and LZCNT the host executes BSF and BSR instead, as it would for the
 * guest. */
enum hv_scan { HV_BSF, HV_BSR, HV_TZCNT, HV_LZCNT, HV_POPCNT, HV_IMUL };
uint32_t hv_scan(enum hv_scan, unsigned size, uint32_t a, uint32_t b, uint32_t *flags);

/* low, high: AL and AH, AX and DX, EAX and EDX. hv_divide: false = #DE, nothing changed. */
void hv_multiply(bool is_signed, unsigned size, uint32_t *low, uint32_t *high, uint32_t b, uint32_t *flags);
bool hv_divide(bool is_signed, unsigned size, uint32_t *low, uint32_t *high, uint32_t b, uint32_t *flags);

/* By opcode: DAA 27, DAS 2F, AAA 37, AAS 3F, AAM D4, AAD D5 (imm: their base). Returns AX; AAM by 0 is the caller's #DE. */
uint16_t hv_decimal(unsigned opcode, uint16_t ax, uint8_t imm, uint32_t *flags);

/* Jcc's, SETcc's and CMOVcc's condition, 0-15. */
bool hv_condition(unsigned condition, uint32_t flags);

#endif

/* The translator: guest kernel code to 64-bit code that does the same in the kernel window (docs/rewriting.md).
 *
 *   translate.c  a block's instructions, one by one      emit.h     machine code into the cache
 *   blocks.c     which blocks there are, chains, and what becomes of them when their code or its mapping changes
 *   stubs.c      the few pieces of code between blocks, the monitor and the guest's programs
 *
 * In translated code the guest's general registers are in the host's, ESP in RSP, upper halves zero; the arithmetic flags and DF are the
 * host's. r15 points to struct hv_cell, r13 and the GS base hold HV_WINDOW; r8 to r12 are free between the guest's instructions. IF is
 * cell.virtual_if, the other flags are cell.virtual_flags.
 */
#ifndef HV_TRANSLATE_H
#define HV_TRANSLATE_H

#include "cell.h"

#define HV_TRANSLATED_FLAGS 0xcd5u /* CF PF AF ZF SF DF OF */

/* ---- blocks.c */
void hv_code_written(uint64_t physical, uint64_t length); /* before it is: blocks that were translated from there are gone */
void hv_code_verify(bool all);             /* mappings changed: all, or those that are not global */
void hv_code_verify_page(uint32_t linear);

/* ---- shadow.c */
void hv_shadow_protect_frame(uint64_t physical);
void hv_shadow_release_frame(uint64_t physical);
bool hv_shadow_is_code(uint64_t physical);

#endif

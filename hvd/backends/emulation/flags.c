/* EFLAGS without garbage.
 *
 * QEMU keeps the status flags as the operands of the last operation that set them (CC_OP, CC_SRC, CC_DST) and computes them on demand.
 * Unicorn's CMPXCHG8B and CMPXCHG16B compute them from a CC_OP that translated code has not stored yet: an old one, which with the
 * present operands may give any 32 bits. Nobody notices while the next instruction sets flags; but when the vcpu is interrupted just
 * there, all of them become the guest's EFLAGS: TF, NT, IOPL, VM. The result has status flags in it and nothing else; whether CF, PF, AF,
 * SF and OF outlive these two instructions, as the manual says (SDM vol. 2A), is left to chance, as in Unicorn: compilers do not ask.
 */
#include "shim.h"

#ifdef __x86_64__

#define STATUS_FLAGS 0x8D5u /* OF SF ZF AF PF CF */

static uint32_t (*original)(CPUX86State *, int);

static uint32_t compute_all(CPUX86State *env, int operation) { return original(env, operation) & STATUS_FLAGS; }

const struct hv_redirection hv_flags_redirection = { "cpu_cc_compute_all_x86_64", compute_all, (void **)&original };
#endif

/* x87 and SSE registers, in FXSAVE's form (SDM vol. 1, 10.5.1), at points where the state is canonical. */
#include <string.h>

#include "shim.h"

#ifdef __x86_64__

/* unicorn/x86.h */
enum { FPSW = 31, ST0 = 114, XMM0 = 122, FPCW = 246, FPTAG = 247, MXCSR = 249, FIP = 254, FDP = 256, FOP = 258 };
enum { MXCSR_MASK = 0xFFFF };

struct hv_fpu {
    uint16_t control, status;
    uint8_t tags, reserved;
    uint16_t opcode;
    uint64_t ip, dp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16], xmm[16][16];
    uint8_t unused[96];
};
_Static_assert(sizeof(struct hv_fpu) == 512, "FXSAVE's image has 512 bytes");

void hv_emulator_get_fpu(struct hv_emulator *e, struct hv_fpu *fpu)
{
    int (*read)(uc_engine *, int, void *) = e->unicorn.uc_reg_read;
    uint16_t tags = 0;
    memset(fpu, 0, sizeof *fpu);
    read(e->uc, FPCW, &fpu->control);
    read(e->uc, FPSW, &fpu->status);
    read(e->uc, FPTAG, &tags);
    for (unsigned i = 0; i < 8; i++) /* two bits a register, 3 = empty; here one, 0 = empty */
        fpu->tags |= (uint8_t)((tags >> 2 * i & 3) != 3) << i;
    read(e->uc, FOP, &fpu->opcode);
    read(e->uc, FIP, &fpu->ip);
    read(e->uc, FDP, &fpu->dp);
    read(e->uc, MXCSR, &fpu->mxcsr);
    fpu->mxcsr_mask = MXCSR_MASK;
    for (int i = 0; i < 8; i++)
        read(e->uc, ST0 + i, fpu->st[i]);
    for (int i = 0; i < 16; i++)
        read(e->uc, XMM0 + i, fpu->xmm[i]);
}

void hv_emulator_set_fpu(struct hv_emulator *e, const struct hv_fpu *fpu)
{
    int (*write)(uc_engine *, int, const void *) = e->unicorn.uc_reg_write;
    uint16_t tags = 0;
    for (unsigned i = 0; i < 8; i++)
        tags |= (uint16_t)((fpu->tags >> i & 1 ? 0 : 3) << 2 * i);
    write(e->uc, FPCW, &fpu->control);
    write(e->uc, FPSW, &fpu->status); /* before the registers, which are counted from its TOP */
    write(e->uc, FPTAG, &tags);
    write(e->uc, FOP, &fpu->opcode);
    write(e->uc, FIP, &fpu->ip);
    write(e->uc, FDP, &fpu->dp);
    uint32_t mxcsr = fpu->mxcsr & MXCSR_MASK; /* bits beyond raise #GP in FXRSTOR */
    write(e->uc, MXCSR, &mxcsr);
    for (int i = 0; i < 8; i++)
        write(e->uc, ST0 + i, fpu->st[i]);
    for (int i = 0; i < 16; i++)
        write(e->uc, XMM0 + i, fpu->xmm[i]);
}
#endif

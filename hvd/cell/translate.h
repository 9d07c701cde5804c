/* The translator: guest kernel code to 64-bit code that does the same in the kernel window (docs/rewriting.md).
 *
 *   translate.c  a block                                 rules.c    its instructions, one by one, as opcodes.c says
 *   common.c     the most frequent of them, several at once
 *   emit.h       machine code into the cache              pieces.c   what rules are made of
 *   blocks.c     which blocks there are, chains, and what becomes of them when their code or its mapping changes
 *   stubs.c      the few pieces of code between blocks, the monitor and the guest's programs
 *   callout.c    from translated code into the monitor and back; port_access.c  for IN and OUT without leaving the block
 *   census.c     which instructions were replaced by what, and how often they run
 *
 * In translated code the guest's general registers are in the host's, ESP in RSP, upper halves zero; the arithmetic flags and DF are the
 * host's. r15 points to struct hv_cell, r13 and the GS base hold cell.window; r8 to r12 are free between the guest's instructions. IF is
 * cell.virtual_if, the other flags are cell.virtual_flags.
 */
#ifndef HV_TRANSLATE_H
#define HV_TRANSLATE_H

#include "cell.h"

#define HV_TRANSLATED_FLAGS 0xcd5u /* CF PF AF ZF SF DF OF */
#define HV_BLOCK_NONE UINT32_MAX
#define HV_ENTRY_NONE UINT32_MAX

/* What translated code asks of the monitor: cell.callout_kind. */
enum hv_callout {
    HV_CALLOUT_EMULATE,   /* the instruction at EIP, by the monitor */
    HV_CALLOUT_IRET,      /* it is IRET */
    HV_CALLOUT_CHAIN,     /* a direct jump is taken for the first time: cell.callout_argument is its exit, which knows EIP */
    HV_CALLOUT_LOOKUP,    /* an indirect jump to EIP, which the table does not know */
    HV_CALLOUT_INTERRUPT, /* at EIP interrupts are on, and something waits */
    HV_CALLOUT_SHADOW,    /* at EIP interrupts are on, behind STI */
    HV_CALLOUT_ASYNC,     /* a signal came while the monitor worked */
    HV_CALLOUT_SYSTEM_CALL, /* INT 80 of a program, out of a slot (sites.h): EIP is behind it, selectors and flags are the program's */
    HV_CALLOUT_DEVICE,    /* the instruction of a native kernel at EIP, which accesses a device's registers or is INT n or IRET, out of a slot (sites.h) */
    HV_CALLOUTS,
};

/* Where in the code of a block an instruction of the guest begins. */
struct hv_place {
    uint16_t host, guest; /* bytes from the block's starts; guest has HV_PLACE_* above 12 bits */
};
#define HV_PLACE_GUEST 0x0fffu
#define HV_PLACE_SHADOW 0x8000u /* interrupts must not be taken here: behind STI, or in the middle of an instruction */
#define HV_PLACE_POPPED 0x4000u /* ESP is one dword further than the guest may see, if this instruction faults */

struct hv_block {
    uint8_t *host;
    uint32_t eip;
    uint32_t incoming;    /* exits that jump here */
    uint32_t first_place, first_entry;
    uint16_t place_count, guest_bytes, host_bytes, instructions;
    uint8_t page_count;
    bool valid;
    bool one_way_in;      /* what its code does relies on what it did before: it is entered at its start only */
    bool calls_out;       /* its last instruction is the monitor's */
    bool user;            /* of a program (withheld.c) */
    uint32_t page[2];     /* linear page numbers */
    uint32_t frame[2];    /* guest-physical ones */
    uint32_t next_in_frame[2];
};

struct hv_found {
    uint32_t eip;
    bool exact;  /* RIP is where a guest instruction begins, and interrupts may be taken */
    bool popped, valid;
};

/* ---- blocks.c */
void hv_blocks_ahead(void); /* of a guest that will have many: their memory is present */
bool hv_blocks_init(void); /* false: no memory at the cache's address, or none at all */
void hv_blocks_flush(void);
uint32_t hv_block_count(void);                        /* the valid ones and those that are gone */
/* Entries: where blocks are entered, at their starts or in the middle, by EIP. */
uint32_t hv_entry_find(uint32_t eip);                 /* of a valid block; HV_ENTRY_NONE */
void hv_entry_announce(uint32_t eip);                 /* it is looked for soon: the processor may fetch what that takes, */
void hv_entry_expect(uint32_t eip);                   /* and, some time later, what it has found there */
uint8_t *hv_entry_host(uint32_t entry);
void hv_entry_look_up(uint32_t entry);                /* indirect jumps find it from now on */
struct hv_block *hv_block(uint32_t index);
bool hv_blocks_locate(const uint8_t *rip, struct hv_found *); /* false: in no block */
void hv_block_chain(uint32_t exit, uint32_t entry);
uint32_t hv_exit_eip(uint32_t exit); /* where it leads to in the guest */
/* For translate.c: room for one more block, then its parts. */
struct hv_emitter;
bool hv_block_fits(void); /* there is; or else the next one empties the cache */
struct hv_block *hv_block_begin(uint32_t eip, uint32_t *index);
void hv_block_place(struct hv_block *, const struct hv_emitter *, uint32_t guest);
struct hv_place *hv_block_places(void);               /* where the next ones go; then how many that were */
void hv_block_placed(struct hv_block *, unsigned count);
uint32_t hv_block_exit(uint8_t *displacement, uint8_t *stub, uint32_t eip);
uint32_t hv_block_end(uint32_t index, const struct hv_emitter *, bool global); /* global: the first page's mapping. Returns its entry */
void hv_code_written(uint64_t physical, uint64_t length); /* before it is: blocks that were translated from there are gone */
void hv_code_drop(uint32_t eip);           /* the blocks with that instruction are gone */
bool hv_code_page(uint32_t page, uint32_t *frame, bool *global); /* linear page number: were blocks translated from there? then what it is mapped to */
void hv_code_verify(bool all);             /* mappings changed: all, or those that are not global */
void hv_code_verify_page(uint32_t linear);

/* ---- translate.c */
uint32_t hv_translate(uint32_t eip); /* the entry of a new block; raises #PF when its first byte cannot be fetched */

/* ---- devices.c */
bool hv_device_sites_in(uint32_t page); /* linear page number: may there be one? */
bool hv_device_site(uint32_t eip, const struct hv_insn *); /* has that instruction accessed devices again and again */
void hv_device_accessed(uint32_t eip, uint64_t physical);  /* by a signal, in translated code */
void hv_device_sites_forget(void);

/* ---- stubs.c */
struct hv_stubs {
    uint8_t *system_call;           /* from a slot of sites.h; the same as callout, but for segments */
    uint8_t *chain;                 /* callout HV_CALLOUT_CHAIN: r10d = exit */
    uint8_t *callout, *callout_end; /* state into struct hv_cell, then C */
    uint8_t *resume;                /* the reverse: to cell.resume; between here and ready_end all state is in struct hv_cell */
    uint8_t *enter_user;            /* the guest's programs, natively */
    uint8_t *by_signal;             /* the same by way of a signal, whose frame brings back what IRETQ cannot */
    uint8_t *ready_end;
    uint8_t *missed, *miss;         /* r8d = EIP, which the table of blocks does not know */
    uint8_t *load_segment;          /* r8d = selector, r9d = segment, r10d = EIP, r12 = where to go on; no callout, if all is as usual */
    uint8_t *access_port;           /* r9d = HV_PORT_ACCESS(), r8d = r10d = EIP, r12 = where to go on; likewise */
    uint8_t *end;
};
extern struct hv_stubs hv_stubs;
void hv_stubs_init(struct hv_emitter *);
void hv_store_selectors(struct hv_emitter *); /* code that stores those of segment registers in cell.live_selector */

/* ---- callout.c */
bool hv_translator_init(void);
uint64_t hv_callout(void); /* called by translated code */
uint32_t hv_translated_load_segment(uint32_t segment, uint32_t selector); /* called by translated code; 0 = not here: let the monitor emulate it */
/* IN and OUT of a byte, called by translated code. */
#define HV_PORT_ACCESS(opcode, immediate, length) ((opcode) | (uint32_t)(uint8_t)(immediate) << 8 | (uint32_t)(length) << 16)
enum hv_port_access {
    HV_PORT_ACCESS_NOT_HERE, /* nothing was done: let the monitor emulate it */
    HV_PORT_ACCESS_DONE,     /* EIP is behind it, and the guest goes on */
    HV_PORT_ACCESS_SETTLE,   /* likewise, but something is to be done first */
};
uint32_t hv_translated_access_port(uint32_t access, uint32_t eip);
bool hv_translatable(void);   /* can the code at EIP be translated: 32-bit, flat segments, privileged */
void hv_translated_state(void);  /* cell.cpu from what translated code keeps elsewhere */
void hv_translated_prepare(void); /* the reverse, before translated code runs */
uint8_t *hv_translated_target(void); /* the code for EIP; raises #PF */
/* signals.c: do that, then everything before the guest's next instruction; returns the host address to go to. */
uint64_t hv_settle_and_go(void (*work)(void));
bool hv_go_straight_on(void); /* native code can go on, with nothing to be done before; false: it must be settled */
bool hv_go_on_translated(void); /* likewise the kernel's translated code, at hv_trap.target */

/* ---- shadow.c */
/* Why a write to a frame must be heard: code was translated or scanned; programs run from private copies of it (sites.h). */
enum hv_frame { HV_FRAME_CODE = 1, HV_FRAME_SITES = 2, HV_FRAME_ALL = 3 };
void hv_shadow_protect_frame(uint64_t physical, enum hv_frame);
void hv_shadow_release_frame(uint64_t physical, enum hv_frame);
bool hv_shadow_is_code(uint64_t physical); /* for whatever reason */
bool hv_shadow_shows_copy(uint32_t page, uint64_t *frame); /* of that frame, in the low view: unless there was none to be had */
void hv_shadow_drop_copy(uint32_t page, uint64_t frame);
void hv_shadow_renew(uint32_t linear, bool user); /* the mapping there, as it would be filled now */

/* ---- census.c */
extern bool hv_census_counts;
void hv_census_count(struct hv_emitter *, uint32_t eip, const struct hv_insn *, enum hv_replacement); /* code that counts it, if anybody wants that */
void hv_census_executed(uint32_t linear, const struct hv_insn *);  /* by the monitor, at a breakpoint */
bool hv_census_serve(void);  /* the turn was one for the census */
void hv_code_of_no_use(void); /* everything is translated anew, from the next settling on */
void hv_census_settle(void); /* before translated code is looked for: the census was switched on or off, and the cache is of no use */

#endif

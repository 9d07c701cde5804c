/* What an instruction has read from devices before it hit a watchpoint. It is executed once more then (debug.c), but a device is read once. */
#include <string.h>

#include "shim.h"

#ifdef __x86_64__

/* The same instruction, and the same round of it if it is repeated: no register has changed. */
static bool is_here(const struct hv_emulator *e)
{
    const struct hv_reads *reads = &e->debug.reads;
    return reads->rip == hv_linear_rip(e) && !memcmp(reads->registers, &HV_AT(uint64_t, e->env, ENV_REGS), sizeof reads->registers);
}

void hv_replay_note(struct hv_emulator *e, bool port, uint64_t address, uint32_t size, uint64_t value)
{
    struct hv_reads *reads = &e->debug.reads;
    if (!e->debug.watchpoints || e->debug.replay)
        return;
    if (!is_here(e)) {
        reads->rip = hv_linear_rip(e);
        memcpy(reads->registers, &HV_AT(uint64_t, e->env, ENV_REGS), sizeof reads->registers);
        reads->count = 0;
    }
    if (reads->count < HV_MOST_READS)
        reads->read[reads->count++] = (struct hv_read){ .port = port, .address = address, .size = size, .value = value };
}

void hv_replay_begin(struct hv_emulator *e)
{
    e->debug.replay = true;
    e->debug.reads.next = 0;
    if (!is_here(e))
        e->debug.reads.count = 0;
}

void hv_replay_end(struct hv_emulator *e)
{
    e->debug.replay = false;
    e->debug.reads.count = 0;
}

bool hv_replay_read(struct hv_emulator *e, bool port, uint64_t address, uint32_t size, uint64_t *value)
{
    struct hv_reads *reads = &e->debug.reads;
    if (!e->debug.replay || reads->next >= reads->count)
        return false;
    const struct hv_read *read = &reads->read[reads->next++];
    *value = read->value;
    return read->port == port && read->address == address && read->size == size;
}
#endif

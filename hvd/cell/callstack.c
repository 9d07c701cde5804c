/* The guest's call stack, for records of crossings that want it (hvd/board/native/stack.c). */
#include "cell.h"

static const void *ram_at(void *owner, uint64_t physical, size_t length)
{
    uint64_t left = 0;
    (void)owner;
    const void *at = hv_memory_at(physical, false, &left);
    return left >= length ? at : NULL;
}

static unsigned call_stack(void *owner, uint64_t *addresses, unsigned most)
{
    (void)owner;
    if (!(HV_CPU->segment[HV_CS].attributes & HV_SEGMENT_32))
        return 0; /* 16-bit code */
    const struct hv_stack_begin begin = {
        .cr0 = HV_CPU->cr0, .cr3 = HV_CPU->cr3, .cr4 = HV_CPU->cr4, .frame = HV_CPU->segment[HV_SS].base + HV_CPU->r[HV_EBP], .word = 4,
        .memory = ram_at,
    };
    return hv_stack_walk(&begin, addresses, most);
}

void hv_callstack_init(void) { cell.board.crossings.stack = call_stack; }

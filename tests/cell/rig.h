/* The interpreters of the cell without the rest of it: memory is an array with rights for each page, linear addresses are physical ones.
 * rig.c takes the place of access.c, segments.c, deliver.c, walk.c, leave.c and sensitive.c. */
#ifndef RIG_H
#define RIG_H

#include "cell.h"

#define RIG_PAGE 4096u
enum { RIG_ABSENT, RIG_READ_ONLY, RIG_WRITABLE };
enum rig_outcome { RIG_DONE, RIG_RAISED, RIG_FAILED };

struct rig {
    uint8_t *memory;
    uint32_t size;             /* bytes, whole pages */
    uint8_t rights[256];       /* of each page */
    uint32_t kick_after;       /* hv_kicked() is true from that call on; 0 never */
    uint32_t kicked_calls;
    uint32_t vector, error, address; /* of what was raised; error ~0: has none */
    uint32_t port_count, port_hash;  /* of accesses so far */
    char failure[200];
};
extern struct rig rig;
void rig_reset(uint8_t *memory, uint32_t size);
struct hv_cpu *rig_cpu(void);
struct rig *rig_state(void);
int rig_step(void); /* enum rig_outcome of one hv_emulate() */
uint32_t rig_port_value(uint32_t count, uint32_t port, uint32_t size); /* what the count-th access reads */

#endif

/* Landlock around a cell that was made ahead. One that is made by a runner in its jail has that one's.
 *
 * https://docs.kernel.org/userspace-api/landlock.html; numbers, which older headers do not have: linux/landlock.h. */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "start.h"

#define CREATE_RULESET 444
#define RESTRICT_SELF 446
#define CREATE_VERSION 1u

/* All that a version of the interface knows, as in hvd/jail/landlock.py; and how much of it such a kernel takes. */
static const struct level {
    uint64_t rights[3]; /* of files, of TCP, and what is closed off */
    size_t size;
} levels[] = {
    {{0x1fff, 0, 0}, 8}, {{0x3fff, 0, 0}, 8}, {{0x7fff, 0, 0}, 8}, {{0x7fff, 3, 0}, 16}, {{0xffff, 3, 0}, 16}, {{0xffff, 3, 3}, 24},
};

bool hv_landlock(void)
{
    const long known = sizeof levels / sizeof *levels;
    long version = syscall(CREATE_RULESET, NULL, 0, CREATE_VERSION);
    if (version <= 0)
        return true; /* this kernel has none, or it is not switched on */
    const struct level *level = &levels[(version < known ? version : known) - 1];
    int rules = (int)syscall(CREATE_RULESET, level->rights, level->size, 0);
    if (rules < 0)
        return false;
    bool done = syscall(RESTRICT_SELF, rules, 0) == 0; /* without a rule: nothing is allowed */
    close(rules);
    return done;
}

/* A cell that is made before its guest is known (hvd/runner/ahead.py): it has done all that is the same for each, and waits to hear whose it is. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "area.h"
#include "start.h"

enum { COUNTERS, TRACE, NETWORK, MOUNTS, DESCRIPTORS };

bool hv_ahead_wait(struct hv_ahead *ahead)
{
    union {
        struct cmsghdr header; /* for its alignment */
        char room[CMSG_SPACE(DESCRIPTORS * sizeof(int))];
    } control;
    struct iovec where = {&ahead->word, sizeof ahead->word};
    struct msghdr message = {.msg_iov = &where, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t length;
    do
        length = recvmsg(HV_CELL_FD_WORD, &message, 0);
    while (length < 0 && errno == EINTR);
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    const size_t least = offsetof(struct hv_cell_word, filter);
    if (length < (ssize_t)least || (size_t)length != least + ahead->word.count * sizeof *ahead->word.filter || !header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(DESCRIPTORS * sizeof(int)))
        return false;
    int given[DESCRIPTORS];
    memcpy(given, CMSG_DATA(header), sizeof given);
    bool done = dup2(given[COUNTERS], HV_CELL_FD_COUNTERS) >= 0 && dup2(given[TRACE], HV_CELL_FD_TRACE) >= 0;
    close(given[COUNTERS]);
    close(given[TRACE]);
    ahead->network = given[NETWORK];
    ahead->mounts = given[MOUNTS];
    return done;
}

/* What the cell's process cannot do, whoever controls it: namespaces of its own, an empty root, no capabilities, no descriptors but its
 * few, tight limits, and a filter of system calls. Each layer holds without the others; seccomp is the one that is always there. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "area.h"
#include "start.h"

/* fsopen(2) and its like, which glibc 2.35 and older do not know. */
#define FSCONFIG_CREATE 6u
#define MOUNT_READ_ONLY 1u
#define MOUNT_NOSUID 2u
#define MOUNT_NODEV 4u
#define MOUNT_NOEXEC 8u

#define PRIVATE_BYTES (256ull << 20) /* of writable private memory: the monitor's tables and cache */

extern const char __executable_start[], etext[];

/* A file system without anything in it, which no mount point leads to, as the root directory. */
static bool leave_root(void)
{
    int context = (int)syscall(SYS_fsopen, "tmpfs", 0);
    if (context < 0)
        return false;
    int mount = -1;
    if (syscall(SYS_fsconfig, context, FSCONFIG_CREATE, NULL, NULL, 0) == 0)
        mount = (int)syscall(SYS_fsmount, context, 0, MOUNT_READ_ONLY | MOUNT_NOSUID | MOUNT_NODEV | MOUNT_NOEXEC);
    close(context);
    if (mount < 0)
        return false;
    bool done = fchdir(mount) == 0 && chroot(".") == 0;
    close(mount);
    return done;
}

static void limit(void)
{
    static const struct {
        int resource;
        rlim_t most;
    } limits[] = {
        {RLIMIT_CORE, 0}, {RLIMIT_FSIZE, 0}, {RLIMIT_NOFILE, HV_CELL_FDS}, {RLIMIT_NPROC, 0}, {RLIMIT_MSGQUEUE, 0}, {RLIMIT_MEMLOCK, 0},
        {RLIMIT_DATA, PRIVATE_BYTES},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit now;
        if (getrlimit((__rlimit_resource_t)limits[i].resource, &now) != 0 || now.rlim_max < limits[i].most)
            continue; /* it is tighter already */
        now.rlim_cur = now.rlim_max = limits[i].most;
        setrlimit((__rlimit_resource_t)limits[i].resource, &now); /* lowering cannot fail */
    }
}

/* In a jailed runner (hvd/jail) there are no privileges for that, but an empty directory: all that is above it is the jail's. */
static bool leave_jail_root(void) { return chroot("/empty") == 0 && chdir("/") == 0; }

static void drop_bounding(void)
{
    for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++) {
    }
}

/* All of them but CAP_SYS_RAWIO, if it is there: mmap(2) of what lies below vm.mmap_min_addr asks for it. */
static uint32_t drop_capabilities(void)
{
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0)
        return 0;
    uint32_t kept = data[0].permitted & 1u << CAP_SYS_RAWIO;
    data[0] = (struct __user_cap_data_struct){.effective = kept, .permitted = kept};
    data[1] = (struct __user_cap_data_struct){0};
    if (syscall(SYS_capset, &header, data) != 0)
        return 0;
    return HV_SANDBOX_CAPABILITIES | (kept ? HV_SANDBOX_RAWIO : 0);
}

uint32_t hv_sandbox_enter(void)
{
    uint32_t done = 0;
    if (unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS) == 0)
        done |= HV_SANDBOX_NAMESPACES;
    if (leave_root() || leave_jail_root())
        done |= HV_SANDBOX_ROOT;
    limit();
    drop_bounding();
    return done | drop_capabilities();
}

/* What it is as the child of a jailed runner (hvd/jail/enter.py). That it may be looked at by those of its user, as any program that its user starts, is lost
 * with the change. */
static bool become(uint32_t user)
{
    return setgroups(0, NULL) == 0 && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0 && setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0 &&
           prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0;
}

bool hv_sandbox_begin(void)
{
    drop_bounding();
    return unshare(CLONE_NEWIPC | CLONE_NEWUTS) == 0;
}

bool hv_sandbox_follow(uint32_t user, int network, int mounts, uint32_t *done)
{
    if (setns(network, CLONE_NEWNET) != 0 || setns(mounts, CLONE_NEWNS) != 0 || !leave_jail_root() || !hv_landlock())
        return false;
    close(network);
    close(mounts);
    limit();
    if (!become(user))
        return false;
    *done = HV_SANDBOX_ROOT | drop_capabilities();
    return *done & HV_SANDBOX_CAPABILITIES;
}

/* Without SPEC_ALLOW, kernels before 5.16 slow down all that runs under a filter. */
static bool add_filter(struct sock_filter *filter, unsigned length)
{
    struct sock_fprog program = {.len = (unsigned short)length, .filter = filter};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) == 0 ||
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}

bool hv_sandbox_close(bool window, struct hv_cell_word *word, int *error)
{
    static const int needless[] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, HV_CELL_FD_AREA, HV_CELL_FD_COUNTERS, HV_CELL_FD_TRACE};
    for (size_t i = 0; i < sizeof needless / sizeof *needless; i++)
        close(needless[i]);
    struct sock_filter filter[HV_FILTER_MOST];
    unsigned length = hv_filter(filter, (uint64_t)__executable_start, (uint64_t)etext, window, (uint32_t)getpid());
    bool closed = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && (!word || add_filter((struct sock_filter *)word->filter, word->count)) &&
                  add_filter(filter, length);
    *error = errno;
    return closed;
}

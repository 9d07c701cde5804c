/* Faults by LD_PRELOAD: the calls below fail, wait or kill their process when the table beside this library says so. The product knows
 * nothing of it. tests/faults/fault_table.py writes the table, which every process that has this library shares. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum call { OPEN = 1, READ, WRITE, SYNC, TRUNCATE, ALLOCATE, RENAME, MKDIR, UNLINK, MAP, MEMFD, SOCKET, PIPE, EVENTFD, SPAWN };
enum act { FAIL = 1, KILL, TEAR, WAIT };
#define RULES 16

struct rule {
    atomic_uint call; /* enum call; 0 = no rule */
    uint32_t act;
    int32_t error;
    uint32_t microseconds;
    uint32_t skip, most;        /* after so many calls, so many times */
    atomic_uint seen, done;     /* calls that matched; faults */
    atomic_ullong last;         /* the number of the last call that matched, of all rules */
    char path[128], process[16]; /* part of the path, of the process's name; empty = any */
};

static struct table {
    atomic_ullong calls;
    atomic_llong clock_ns; /* the wall clock is this much ahead */
    char boot_id[40];      /* empty = the host's */
    struct rule rules[RULES];
} *table;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void find_table(void)
{
    Dl_info info;
    char path[PATH_MAX];
    struct stat found;
    if (!dladdr((void *)find_table, &info) || snprintf(path, sizeof path, "%s.table", info.dli_fname) >= (int)sizeof path)
        return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &found) == 0 && found.st_size >= (off_t)sizeof *table) {
        void *at = (void *)syscall(SYS_mmap, NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0L);
        table = at == MAP_FAILED ? NULL : at;
    }
    syscall(SYS_close, fd);
}

static ssize_t link_target(const char *link, char *target, size_t size)
{
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, target, size - 1);
    target[length < 0 ? 0 : length] = 0;
    return length;
}

static void own_name(char *name, size_t size)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/comm", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : syscall(SYS_read, fd, name, size - 1);
    name[length < 0 ? 0 : length] = 0;
    if (fd >= 0)
        syscall(SYS_close, fd);
}

static bool matches(const struct rule *rule, const char *path, int fd)
{
    char target[PATH_MAX + 300], link[64], name[32];
    if (rule->process[0]) {
        own_name(name, sizeof name);
        if (!strstr(name, rule->process))
            return false;
    }
    if (!rule->path[0])
        return true;
    if (path && path[0] == '/')
        return strstr(path, rule->path) != NULL;
    if (path) { /* relative: most are, in a guest's directory */
        ssize_t length = link_target("/proc/self/cwd", target, PATH_MAX);
        length = length < 0 ? 0 : length;
        snprintf(target + length, sizeof target - (size_t)length, "/%s", path);
        return strstr(target, rule->path) != NULL;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    link_target(link, target, PATH_MAX);
    return strstr(target, rule->path) != NULL;
}

/* 0 = go on; otherwise the act, with errno set. */
static enum act fault(enum call call, const char *path, int fd)
{
    if (!table)
        return 0;
    int before = errno;
    for (struct rule *rule = table->rules; rule < table->rules + RULES; rule++) {
        if (atomic_load(&rule->call) != call || !matches(rule, path, fd))
            continue;
        atomic_store(&rule->last, atomic_fetch_add(&table->calls, 1) + 1);
        unsigned number = atomic_fetch_add(&rule->seen, 1);
        if (number < rule->skip || number - rule->skip >= rule->most)
            continue;
        atomic_fetch_add(&rule->done, 1);
        switch (rule->act) {
        case KILL:
            syscall(SYS_kill, getpid(), SIGKILL);
            for (;;)
                pause();
        case WAIT: {
            struct timespec time = { rule->microseconds / 1000000, rule->microseconds % 1000000 * 1000 };
            syscall(SYS_nanosleep, &time, NULL);
            break;
        }
        case TEAR:
            return TEAR;
        default:
            errno = rule->error;
            return FAIL;
        }
    }
    errno = before;
    return 0;
}

static int boot_id(void)
{
    int fd = (int)syscall(SYS_memfd_create, "boot_id", MFD_CLOEXEC);
    syscall(SYS_write, fd, table->boot_id, strlen(table->boot_id));
    syscall(SYS_lseek, fd, 0L, SEEK_SET);
    return fd;
}

static int open_at(int directory, const char *path, int flags, unsigned mode)
{
    if (fault(OPEN, path, -1) != 0)
        return -1;
    if (table && table->boot_id[0] && path && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0)
        return boot_id();
    return (int)syscall(SYS_openat, directory, path, flags, mode);
}

#define OPENER(name, first, directory)                                                                                                     \
    int name(first const char *path, int flags, ...)                                                                                       \
    {                                                                                                                                      \
        va_list more;                                                                                                                      \
        va_start(more, flags);                                                                                                             \
        unsigned mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, unsigned) : 0;                                                        \
        va_end(more);                                                                                                                      \
        return open_at(directory, path, flags, mode);                                                                                      \
    }
#define NOTHING
#define DIRECTORY int directory,
OPENER(open, NOTHING, AT_FDCWD)
OPENER(open64, NOTHING, AT_FDCWD)
OPENER(openat, DIRECTORY, directory)
OPENER(openat64, DIRECTORY, directory)

ssize_t read(int fd, void *to, size_t size) { return fault(READ, NULL, fd) ? -1 : syscall(SYS_read, fd, to, size); }
ssize_t pread(int fd, void *to, size_t size, off_t at) { return fault(READ, NULL, fd) ? -1 : syscall(SYS_pread64, fd, to, size, at); }
ssize_t pread64(int fd, void *to, size_t size, off64_t at) { return pread(fd, to, size, at); }

/* A torn write: half of it is there, and the process is not. */
static ssize_t put(int fd, const void *from, size_t size, off_t at)
{
    enum act act = fault(WRITE, NULL, fd);
    if (act == FAIL)
        return -1;
    if (act == TEAR)
        size /= 2;
    ssize_t done = at < 0 ? syscall(SYS_write, fd, from, size) : syscall(SYS_pwrite64, fd, from, size, at);
    if (act == TEAR)
        syscall(SYS_kill, getpid(), SIGKILL);
    return done;
}

ssize_t write(int fd, const void *from, size_t size) { return put(fd, from, size, -1); }
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) { return put(fd, from, size, at); }
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) { return put(fd, from, size, at); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at)
{
    return fault(WRITE, NULL, fd) ? -1 : syscall(SYS_pwritev, fd, v, n, at & 0xFFFFFFFF, at >> 32);
}
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) { return pwritev(fd, v, n, at); }

int fsync(int fd) { return fault(SYNC, NULL, fd) ? -1 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return fault(SYNC, NULL, fd) ? -1 : (int)syscall(SYS_fdatasync, fd); }
int ftruncate(int fd, off_t size) { return fault(TRUNCATE, NULL, fd) ? -1 : (int)syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }
int fallocate(int fd, int mode, off_t at, off_t size) { return fault(ALLOCATE, NULL, fd) ? -1 : (int)syscall(SYS_fallocate, fd, mode, at, size); }
int fallocate64(int fd, int mode, off64_t at, off64_t size) { return fallocate(fd, mode, at, size); }
int posix_fallocate(int fd, off_t at, off_t size) { return fallocate(fd, 0, at, size) ? errno : 0; }
int posix_fallocate64(int fd, off64_t at, off64_t size) { return posix_fallocate(fd, at, size); }
int rename(const char *from, const char *to) { return fault(RENAME, from, -1) ? -1 : (int)syscall(SYS_rename, from, to); }
int mkdir(const char *path, mode_t mode) { return fault(MKDIR, path, -1) ? -1 : (int)syscall(SYS_mkdir, path, mode); }
int unlink(const char *path) { return fault(UNLINK, path, -1) ? -1 : (int)syscall(SYS_unlink, path); }

void *mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset)
{
    return fault(MAP, fd < 0 ? "/anonymous" : NULL, fd) ? MAP_FAILED : (void *)syscall(SYS_mmap, at, size, rights, flags, fd, offset);
}
void *mmap64(void *at, size_t size, int rights, int flags, int fd, off64_t offset) { return mmap(at, size, rights, flags, fd, offset); }
int memfd_create(const char *name, unsigned flags) { return fault(MEMFD, name, -1) ? -1 : (int)syscall(SYS_memfd_create, name, flags); }
int socket(int domain, int type, int protocol) { return fault(SOCKET, "socket", -1) ? -1 : (int)syscall(SYS_socket, domain, type, protocol); }
int pipe2(int fds[2], int flags) { return fault(PIPE, "pipe", -1) ? -1 : (int)syscall(SYS_pipe2, fds, flags); }
int pipe(int fds[2]) { return pipe2(fds, 0); }
int eventfd(unsigned value, int flags) { return fault(EVENTFD, "eventfd", -1) ? -1 : (int)syscall(SYS_eventfd2, value, flags); }

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes, char *const argv[],
                char *const envp[])
{
    REAL(posix_spawn);
    return fault(SPAWN, path, -1) ? errno : real(pid, path, actions, attributes, argv, envp);
}

pid_t fork(void)
{
    REAL(fork);
    return fault(SPAWN, "fork", -1) ? -1 : real();
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(clock_gettime);
    int result = real(clock, now);
    long long ahead = table && clock == CLOCK_REALTIME ? atomic_load(&table->clock_ns) : 0;
    if (result == 0 && ahead) {
        long long ns = now->tv_sec * 1000000000LL + now->tv_nsec + ahead;
        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return result;
}

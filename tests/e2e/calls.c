/* System calls of many kinds, each with a result that is the same wherever it runs: for a comparison with strace. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

static void files(void)
{
    char data[64] = "known";
    int fd = open("/tmp/hvd-calls", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    write(fd, data, 5);
    lseek(fd, -3, SEEK_END);
    read(fd, data, sizeof data);
    flock(fd, LOCK_EX | LOCK_NB);
    fcntl(fd, F_GETFL);
    fcntl(fd, F_DUPFD_CLOEXEC, 100);
    dup3(fd, 50, O_CLOEXEC);
    struct stat about;
    fstatat(fd, "", &about, AT_EMPTY_PATH);
    fstatat(AT_FDCWD, "/tmp/hvd-calls", &about, AT_SYMLINK_NOFOLLOW);
    faccessat(AT_FDCWD, "/tmp/hvd-calls", R_OK | W_OK, 0);
    access("/none", F_OK);
    open("/none", O_RDONLY | O_DIRECTORY);
    close(fd);
    close(fd);
    rename("/tmp/hvd-calls", "/tmp/hvd-calls.2");
    unlinkat(AT_FDCWD, "/tmp/hvd-calls.2", 0);
    unlinkat(AT_FDCWD, "/tmp/none", AT_REMOVEDIR);
    int ends[2];
    pipe2(ends, O_NONBLOCK | O_CLOEXEC);
    read(ends[0], data, 1);
}

static void memory(void)
{
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mprotect(page, 4096, PROT_READ);
    madvise(page, 4096, MADV_DONTNEED);
    mmap(NULL, 0, PROT_NONE, MAP_SHARED, -1, 0);
    munmap(page, 8192);
}

static void sockets(void)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX, .sun_path = "/none/socket"};
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    connect(fd, (struct sockaddr *)&local, sizeof local);
    int other = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    bind(other, (struct sockaddr *)&(struct sockaddr_in){.sin_family = AF_INET}, sizeof inet);
    sendto(other, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&inet, 3);
    shutdown(fd, SHUT_RDWR);
    int pair[2];
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair);
}

int main(void)
{
    files();
    memory();
    sockets();
    prctl(PR_SET_NAME, "calls");
    prctl(PR_GET_DUMPABLE);
    signal(SIGUSR1, SIG_IGN);
    pid_t child = fork();
    if (child == 0) {
        raise(SIGUSR1);
        unshare(CLONE_FS | CLONE_FILES);
        char *words[] = {"/calls32", NULL};
        execve("/none", words, words + 1);
        _exit(7);
    }
    waitpid(child, NULL, 0);
    waitpid(-1, NULL, WNOHANG);
    syscall(500);
    return 0;
}

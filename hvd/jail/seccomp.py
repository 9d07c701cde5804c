"""The runner's filter of system calls: what a Python process with threads, files, unix sockets and a cell needs. All else answers EPERM, of which
the process can tell; a cell has a much tighter filter on top of this one. It cannot make links or device files: the daemon reads what it finds in the
guest's directories.

x86-64 only. Call numbers: arch/x86/entry/syscalls/syscall_64.tbl of Linux; the filter's form: seccomp(2), linux/filter.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

_NUMBERS: Final = {
    "files": "read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 lseek 8 ioctl 16 pread64 17 pwrite64 18 readv 19 writev 20 access 21 pipe 22 "
    "dup 32 dup2 33 sendfile 40 fcntl 72 flock 73 fsync 74 fdatasync 75 truncate 76 ftruncate 77 getdents 78 getcwd 79 chdir 80 fchdir 81 rename 82 "
    "mkdir 83 rmdir 84 unlink 87 readlink 89 chmod 90 fchmod 91 umask 95 statfs 137 fstatfs 138 getdents64 217 fadvise64 221 "
    "openat 257 mkdirat 258 newfstatat 262 unlinkat 263 renameat 264 readlinkat 267 fchmodat 268 faccessat 269 sync_file_range 277 "
    "utimensat 280 fallocate 285 dup3 292 pipe2 293 preadv 295 pwritev 296 renameat2 316 copy_file_range 326 preadv2 327 pwritev2 328 statx 332 "
    "close_range 436 faccessat2 439",
    "memory": "mmap 9 mprotect 10 munmap 11 brk 12 mremap 25 msync 26 mincore 27 madvise 28 memfd_create 319 membarrier 324",
    "signals": "rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 pause 34 kill 62 rt_sigpending 127 rt_sigtimedwait 128 rt_sigsuspend 130 "
    "sigaltstack 131 tkill 200 tgkill 234 restart_syscall 219",
    "time": "nanosleep 35 getitimer 36 alarm 37 setitimer 38 gettimeofday 96 times 100 time 201 timer_create 222 timer_settime 223 timer_gettime 224 "
    "timer_getoverrun 225 timer_delete 226 clock_gettime 228 clock_getres 229 clock_nanosleep 230 timerfd_create 283 timerfd_settime 286 "
    "timerfd_gettime 287",
    "threads": "sched_yield 24 getpid 39 exit 60 uname 63 getrlimit 97 getrusage 98 sysinfo 99 getuid 102 getgid 104 geteuid 107 getegid 108 "
    "setpgid 109 getppid 110 getpgrp 111 setsid 112 getgroups 115 getresuid 118 getresgid 120 getpgid 121 getsid 124 prctl 157 arch_prctl 158 "
    "setrlimit 160 gettid 186 futex 202 sched_setaffinity 203 sched_getaffinity 204 set_tid_address 218 exit_group 231 set_robust_list 273 "
    "get_robust_list 274 prlimit64 302 getcpu 309 getrandom 318 rseq 334 futex_waitv 449",
    "processes": "vfork 58 execve 59 wait4 61 waitid 247 pidfd_send_signal 424 pidfd_open 434",
    "sockets": "connect 42 accept 43 sendto 44 recvfrom 45 sendmsg 46 recvmsg 47 shutdown 48 bind 49 listen 50 getsockname 51 getpeername 52 "
    "socketpair 53 setsockopt 54 getsockopt 55 accept4 288 recvmmsg 299 sendmmsg 307",
    "waiting": "poll 7 select 23 epoll_create 213 epoll_wait 232 epoll_ctl 233 pselect6 270 ppoll 271 epoll_pwait 281 eventfd 284 eventfd2 290 "
    "epoll_create1 291 epoll_pwait2 441",
    # What a cell does before it closes its own filter.
    "cell": "capget 125 capset 126 modify_ldt 154 chroot 161 perf_event_open 298 seccomp 317",
}
SOCKET, CLONE, CLONE_3 = 41, 56, 435
ALLOWED: Final[frozenset[int]] = frozenset(int(number) for words in _NUMBERS.values() for number in words.split()[1::2])

_AF_UNIX = 1
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = 0x7E02_0000
_ARCHITECTURE = 0xC000_003E
_X32 = 0x4000_0000
_EPERM, _ENOSYS = 1, 38
_ERRNO, _ALLOW = 0x0005_0000, 0x7FFF_0000
# struct seccomp_data.
_NUMBER, _WHICH, _ARGUMENT_0 = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

Instruction = tuple[int, int, int, int]


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _return(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """[first, last] of those that follow each other."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _search(ranges: list[tuple[int, int]]) -> list[Instruction]:
    """A tree of comparisons: some eight for each call instead of a hundred."""
    if len(ranges) == 1:
        first, last = ranges[0]
        return [(_AT_LEAST, 0, 2, first), (_AT_LEAST, 1, 0, last + 1), _return(_ALLOW), _return(_ERRNO | _EPERM)]
    middle = len(ranges) // 2
    low, high = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_AT_LEAST, len(low), 0, ranges[middle][0]), *low, *high]


def program(allowed: Iterable[int] = ALLOWED) -> bytes:
    """struct sock_filter, one after another."""
    code: list[Instruction] = [
        _load(_WHICH), (_EQUAL, 1, 0, _ARCHITECTURE), _return(_ERRNO | _EPERM),
        _load(_NUMBER),
        # glibc falls back to clone, whose flags can be seen.
        (_EQUAL, 0, 1, CLONE_3), _return(_ERRNO | _ENOSYS),
        (_EQUAL, 0, 4, CLONE), _load(_ARGUMENT_0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _return(_ERRNO | _EPERM), _return(_ALLOW),
        (_EQUAL, 0, 4, SOCKET), _load(_ARGUMENT_0), (_EQUAL, 1, 0, _AF_UNIX), _return(_ERRNO | _EPERM), _return(_ALLOW),
        *_search(_ranges(allowed)),
    ]  # fmt: skip
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)

"""Linux's system calls for 32-bit programs (int 0x80, sysenter): number, name, arguments where they are not those of the x86-64 call of
that name (arch/x86/entry/syscalls/syscall_32.tbl; man 2 of each)."""

from __future__ import annotations

from hvd.backends.container.trace.syscalls import CALLS, SystemCall, parse_call

# Lines of a first number and the names from there on.
_NAMES = """
0: restart_syscall exit fork read write open close waitpid creat link unlink execve chdir time mknod chmod lchown break oldstat lseek
20: getpid mount umount setuid getuid stime ptrace alarm oldfstat pause utime stty gtty access nice ftime sync kill rename mkdir rmdir
41: dup pipe times prof brk setgid getgid signal geteuid getegid acct umount2 lock ioctl fcntl mpx setpgid ulimit oldolduname umask
61: chroot ustat dup2 getppid getpgrp setsid sigaction sgetmask ssetmask setreuid setregid sigsuspend sigpending sethostname setrlimit
76: getrlimit getrusage gettimeofday settimeofday getgroups setgroups select symlink oldlstat readlink uselib swapon reboot readdir mmap
91: munmap truncate ftruncate fchmod fchown getpriority setpriority profil statfs fstatfs ioperm socketcall syslog setitimer getitimer
106: stat lstat fstat olduname iopl vhangup idle vm86old wait4 swapoff sysinfo ipc fsync sigreturn clone setdomainname uname modify_ldt
124: adjtimex mprotect sigprocmask create_module init_module delete_module get_kernel_syms quotactl getpgid fchdir bdflush sysfs
136: personality afs_syscall setfsuid setfsgid _llseek getdents _newselect flock msync readv writev getsid fdatasync _sysctl mlock
151: munlock mlockall munlockall sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_yield sched_get_priority_max
160: sched_get_priority_min sched_rr_get_interval nanosleep mremap setresuid getresuid vm86 query_module poll nfsservctl setresgid
171: getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend pread64
181: pwrite64 chown getcwd capget capset sigaltstack sendfile getpmsg putpmsg vfork ugetrlimit mmap2 truncate64 ftruncate64 stat64
196: lstat64 fstat64 lchown32 getuid32 getgid32 geteuid32 getegid32 setreuid32 setregid32 getgroups32 setgroups32 fchown32 setresuid32
209: getresuid32 setresgid32 getresgid32 chown32 setuid32 setgid32 setfsuid32 setfsgid32 pivot_root mincore madvise getdents64 fcntl64
224: gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr
237: fremovexattr tkill sendfile64 futex sched_setaffinity sched_getaffinity set_thread_area get_thread_area io_setup io_destroy
247: io_getevents io_submit io_cancel fadvise64
252: exit_group lookup_dcookie epoll_create epoll_ctl epoll_wait remap_file_pages set_tid_address timer_create timer_settime
261: timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres clock_nanosleep statfs64 fstatfs64 tgkill
271: utimes fadvise64_64 vserver mbind get_mempolicy set_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
282: mq_getsetattr kexec_load waitid
286: add_key request_key keyctl ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat
297: mknodat fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare
311: set_robust_list get_robust_list splice sync_file_range tee vmsplice move_pages getcpu epoll_pwait utimensat signalfd timerfd_create
323: eventfd fallocate timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev
335: rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime
344: syncfs sendmmsg setns process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom
356: memfd_create bpf execveat socket socketpair bind connect listen accept4 getsockopt setsockopt getsockname getpeername sendto
370: sendmsg recvfrom recvmsg shutdown userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free
383: statx arch_prctl io_pgetevents rseq
393: semget semctl shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl clock_gettime64 clock_settime64 clock_adjtime64
406: clock_getres_time64 clock_nanosleep_time64 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 utimensat_time64
413: pselect6_time64 ppoll_time64
416: io_pgetevents_time64 recvmmsg_time64 mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64 rt_sigtimedwait_time64
422: futex_time64 sched_rr_get_interval_time64
"""
# From here on a number means the same call in both.
_COMMON_NUMBERS = 424
# Calls that x86-64 does not have, or has with other arguments: 64 bits come as two arguments.
_OWN = """
waitpid pid wstatus options:wait-options | break | oldstat pathname statbuf | umount pathname | stime time | oldfstat fd statbuf
stty | gtty | nice inc | ftime | prof | signal signum act | lock | mpx | ulimit | oldolduname buf | sigaction signum act oldact
sgetmask | ssetmask mask | sigsuspend | sigpending set | oldlstat pathname statbuf | readdir fd dirent count | profil
socketcall call args | olduname buf | idle | vm86old info | ipc call first second third ptr fifth | sigreturn
sigprocmask how:signal-how set oldset | bdflush func data | _llseek fd offset_high offset_low result_ptr whence:whence
_newselect nfds readfds writefds exceptfds timeout_ptr | vm86 cmd info | ugetrlimit resource:resource rlim
mmap2 addr length prot flags:map-flags fd page_offset | mmap args_ptr | truncate64 pathname length_low length_high
ftruncate64 fd length_low length_high | stat64 pathname statbuf | lstat64 pathname statbuf | fstat64 fd statbuf
lchown32 pathname uid gid | getuid32 | getgid32 | geteuid32 | getegid32 | setreuid32 ruid euid | setregid32 rgid egid
getgroups32 size list | setgroups32 size list | fchown32 fd uid gid | setresuid32 ruid euid suid
getresuid32 ruid_ptr euid_ptr suid_ptr | setresgid32 rgid egid sgid | getresgid32 rgid_ptr egid_ptr sgid_ptr
chown32 pathname uid gid | setuid32 uid | setgid32 gid | setfsuid32 uid | setfsgid32 gid | fcntl64 fd cmd:fcntl-command arg
sendfile64 out_fd in_fd offset_ptr count | statfs64 pathname size buf | fstatfs64 fd size buf
fadvise64_64 fd offset_low offset_high length_low length_high advice | fstatat64 dfd pathname statbuf flags:at-flags
clock_gettime64 clockid:clock tp | clock_settime64 clockid:clock tp | clock_adjtime64 clockid:clock buf
clock_getres_time64 clockid:clock tp | clock_nanosleep_time64 clockid:clock flags:timer-flags rqtp rmtp | timer_gettime64 timerid value
timer_settime64 timerid flags:timer-flags value ovalue | timerfd_gettime64 fd value | timerfd_settime64 fd flags:timer-flags value ovalue
utimensat_time64 dfd pathname times flags:at-flags | pselect6_time64 nfds readfds writefds exceptfds timeout_ptr sigmask
ppoll_time64 fds nfds timeout_ptr sigmask sigsetsize | io_pgetevents_time64 ctx min_nr nr_events events timeout_ptr usig
recvmmsg_time64 fd msgvec vlen flags:message-flags timeout_ptr | mq_timedsend_time64 fd buf count prio timeout_ptr
mq_timedreceive_time64 fd buf count prio_ptr timeout_ptr | semtimedop_time64 semid sops nsops timeout_ptr
rt_sigtimedwait_time64 set info timeout_ptr sigsetsize | futex_time64 uaddr op:futex-operation val timeout_ptr uaddr2 val3
sched_rr_get_interval_time64 pid tp | pread64 fd buf count offset_low offset_high | pwrite64 fd buf count offset_low offset_high
readahead fd offset_low offset_high count | fadvise64 fd offset_low offset_high length advice
clone flags:clone-flags stack parent_tid tls child_tid | select args_ptr
"""


def _calls() -> dict[int, SystemCall]:
    own = {words.split()[0]: words for line in _OWN.strip().splitlines() for words in line.split("|")}
    known = {call.name: call for call in CALLS.values()}
    found = {number: call for number, call in CALLS.items() if number >= _COMMON_NUMBERS}
    for line in _NAMES.strip().splitlines():
        first, _, names = line.partition(":")
        for number, name in enumerate(names.split(), int(first)):
            found[number] = parse_call(number, own[name]) if name in own else known[name]
    return dict(sorted(found.items()))


# A call that is the same in x86-64 is the same object, with the number that it has there.
CALLS_32 = _calls()

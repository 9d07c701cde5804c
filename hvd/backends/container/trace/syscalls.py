"""Linux's system calls on x86-64: number, name, arguments (arch/x86/entry/syscalls/syscall_64.tbl; man 2 of each)."""

from __future__ import annotations

from dataclasses import dataclass

# Lines of a first number and the calls from there on, one each: its name, then its arguments; after a colon its format.
_CALLS = """
0: read fd buf count | write fd buf count | open pathname flags:open-flags mode | close fd | stat pathname statbuf | fstat fd statbuf
6: lstat pathname statbuf | poll fds nfds timeout | lseek fd offset whence:whence | mmap addr length prot flags:map-flags fd offset
10: mprotect addr length prot | munmap addr length | brk addr | rt_sigaction signum act oldact sigsetsize
14: rt_sigprocmask how:signal-how set oldset sigsetsize | rt_sigreturn | ioctl fd request:ioctl-request argp
17: pread64 fd buf count offset | pwrite64 fd buf count offset | readv fd iov iovcnt | writev fd iov iovcnt
21: access pathname mode:access-mode | pipe pipefd | select nfds readfds writefds exceptfds timeout_ptr | sched_yield
25: mremap addr length new_length flags:remap-flags new_addr | msync addr length flags:sync-flags | mincore addr length vec
28: madvise addr length advice:memory-advice | shmget key size flags | shmat shmid addr flags | shmctl shmid cmd buf | dup oldfd
33: dup2 oldfd newfd | pause | nanosleep rqtp rmtp | getitimer which value | alarm seconds | setitimer which value ovalue | getpid
40: sendfile out_fd in_fd offset_ptr count | socket family:socket-family type:socket-type protocol
42: connect fd addr:socket-address addrlen | accept fd addr addrlen_ptr
44: sendto fd buf count flags:message-flags addr:socket-address addrlen | recvfrom fd buf count flags:message-flags addr addrlen_ptr
46: sendmsg fd msg flags:message-flags | recvmsg fd msg flags:message-flags | shutdown fd how:shutdown-how
49: bind fd addr:socket-address addrlen | listen fd backlog | getsockname fd addr addrlen_ptr | getpeername fd addr addrlen_ptr
53: socketpair family:socket-family type:socket-type protocol pipefd | setsockopt fd level:socket-level optname optval optlen
55: getsockopt fd level:socket-level optname optval optlen_ptr | clone flags:clone-flags stack parent_tid child_tid tls | fork | vfork
59: execve pathname argv envp | exit status | wait4 pid wstatus options:wait-options rusage | kill pid signum | uname buf
64: semget key nsems flags | semop semid sops nsops | semctl semid semnum cmd arg | shmdt addr | msgget key flags
69: msgsnd msqid msgp count flags | msgrcv msqid msgp count msgtyp flags | msgctl msqid cmd buf | fcntl fd cmd:fcntl-command arg
73: flock fd operation:flock-operation | fsync fd | fdatasync fd | truncate pathname length | ftruncate fd length
78: getdents fd dirent count | getcwd buf size | chdir pathname | fchdir fd | rename oldpath newpath | mkdir pathname mode
84: rmdir pathname | creat pathname mode | link oldpath newpath | unlink pathname | symlink target linkpath | readlink pathname buf size
90: chmod pathname mode | fchmod fd mode | chown pathname uid gid | fchown fd uid gid | lchown pathname uid gid | umask mode
96: gettimeofday tv tz | getrlimit resource:resource rlim | getrusage who:usage-who rusage | sysinfo info | times buf
101: ptrace request pid addr data | getuid | syslog type buf size | getgid | setuid uid | setgid gid | geteuid | getegid
109: setpgid pid pgid | getppid | getpgrp | setsid | setreuid ruid euid | setregid rgid egid | getgroups size list | setgroups size list
117: setresuid ruid euid suid | getresuid ruid_ptr euid_ptr suid_ptr | setresgid rgid egid sgid | getresgid rgid_ptr egid_ptr sgid_ptr
121: getpgid pid | setfsuid uid | setfsgid gid | getsid pid | capget header data | capset header data | rt_sigpending set sigsetsize
128: rt_sigtimedwait set info timeout_ptr sigsetsize | rt_sigqueueinfo pid signum info | rt_sigsuspend set sigsetsize
131: sigaltstack ss old_ss | utime pathname times | mknod pathname mode dev | uselib pathname | personality persona | ustat dev buf
137: statfs pathname buf | fstatfs fd buf | sysfs option arg1 arg2 | getpriority which who | setpriority which who prio
142: sched_setparam pid param | sched_getparam pid param | sched_setscheduler pid policy param | sched_getscheduler pid
146: sched_get_priority_max policy | sched_get_priority_min policy | sched_rr_get_interval pid tp | mlock addr length
150: munlock addr length | mlockall flags | munlockall | vhangup | modify_ldt func ptr count | pivot_root newroot putold | _sysctl args
157: prctl option:prctl-option arg2 arg3 arg4 arg5 | arch_prctl code:arch-prctl-code addr | adjtimex buf
160: setrlimit resource:resource rlim | chroot pathname | sync | acct pathname | settimeofday tv tz
165: mount source target type_ptr flags:mount-flags data | umount2 pathname flags:unmount-flags | swapon pathname flags
168: swapoff pathname | reboot magic magic2 cmd arg | sethostname text length | setdomainname text length | iopl level
173: ioperm from num on | create_module text size | init_module addr length args | delete_module text flags | get_kernel_syms table
178: query_module text which buf size ret | quotactl cmd special id addr | nfsservctl cmd argp resp | getpmsg | putpmsg | afs_syscall
184: tuxcall | security | gettid | readahead fd offset count | setxattr pathname name value size flags
189: lsetxattr pathname name value size flags | fsetxattr fd name value size flags | getxattr pathname name value size
192: lgetxattr pathname name value size | fgetxattr fd name value size | listxattr pathname list size | llistxattr pathname list size
196: flistxattr fd list size | removexattr pathname name | lremovexattr pathname name | fremovexattr fd name | tkill pid signum
201: time tloc | futex uaddr op:futex-operation val timeout_ptr uaddr2 val3 | sched_setaffinity pid size mask
204: sched_getaffinity pid size mask | set_thread_area info | io_setup nr_events ctx_ptr | io_destroy ctx
208: io_getevents ctx min_nr nr_events events timeout_ptr | io_submit ctx nr_events iocbpp | io_cancel ctx iocb result_ptr
211: get_thread_area info | lookup_dcookie cookie buf size | epoll_create size | epoll_ctl_old | epoll_wait_old
216: remap_file_pages addr length prot offset flags | getdents64 fd dirent count | set_tid_address tidptr | restart_syscall
220: semtimedop semid sops nsops timeout_ptr | fadvise64 fd offset length advice | timer_create clockid:clock sevp timerid_ptr
223: timer_settime timerid flags:timer-flags value ovalue | timer_gettime timerid value | timer_getoverrun timerid
226: timer_delete timerid | clock_settime clockid:clock tp | clock_gettime clockid:clock tp | clock_getres clockid:clock tp
230: clock_nanosleep clockid:clock flags:timer-flags rqtp rmtp | exit_group status | epoll_wait epfd events maxevents timeout
233: epoll_ctl epfd op:epoll-operation fd event | tgkill tgid pid signum | utimes pathname times | vserver
237: mbind addr length mode_value nodemask maxnode flags | set_mempolicy policy nodemask maxnode
239: get_mempolicy policy_ptr nodemask maxnode addr flags | mq_open text flags mode attr | mq_unlink text
242: mq_timedsend fd buf count prio timeout_ptr | mq_timedreceive fd buf count prio_ptr timeout_ptr | mq_notify fd sevp
245: mq_getsetattr fd newattr oldattr | kexec_load entry nr_segments segments flags
247: waitid which:wait-which pid info options:wait-options rusage | add_key type_ptr description payload plen keyring
249: request_key type_ptr description callout keyring | keyctl operation arg2 arg3 arg4 arg5 | ioprio_set which who ioprio
252: ioprio_get which who | inotify_init | inotify_add_watch fd pathname mask | inotify_rm_watch fd wd
256: migrate_pages pid maxnode old_nodes new_nodes | openat dfd pathname flags:open-flags mode | mkdirat dfd pathname mode
259: mknodat dfd pathname mode dev | fchownat dfd pathname uid gid flags:at-flags | futimesat dfd pathname times
262: newfstatat dfd pathname statbuf flags:at-flags | unlinkat dfd pathname flags:unlink-flags | renameat olddfd oldpath newdfd newpath
265: linkat olddfd oldpath newdfd newpath flags:at-flags | symlinkat target newdfd linkpath | readlinkat dfd pathname buf size
268: fchmodat dfd pathname mode | faccessat dfd pathname mode:access-mode | pselect6 nfds readfds writefds exceptfds timeout_ptr sigmask
271: ppoll fds nfds timeout_ptr sigmask sigsetsize | unshare flags:clone-flags | set_robust_list head length
274: get_robust_list pid head_ptr length_ptr | splice in_fd in_offset_ptr out_fd out_offset_ptr count flags
276: tee in_fd out_fd count flags | sync_file_range fd offset count flags | vmsplice fd iov iovcnt flags
279: move_pages pid count pages nodes_ptr status_ptr flags | utimensat dfd pathname times flags:at-flags
281: epoll_pwait epfd events maxevents timeout sigmask sigsetsize | signalfd fd mask sizemask
283: timerfd_create clockid:clock flags:timerfd-flags | eventfd initval | fallocate fd mode_value offset length
286: timerfd_settime fd flags:timer-flags value ovalue | timerfd_gettime fd value | accept4 fd addr addrlen_ptr flags:socket-flags
289: signalfd4 fd mask sizemask flags:signalfd-flags | eventfd2 initval flags:eventfd-flags | epoll_create1 flags:epoll-flags
292: dup3 oldfd newfd flags:descriptor-flags | pipe2 pipefd flags:descriptor-flags | inotify_init1 flags:inotify-flags
295: preadv fd iov iovcnt offset offset_high | pwritev fd iov iovcnt offset offset_high | rt_tgsigqueueinfo tgid pid signum info
298: perf_event_open attr pid cpu group_fd flags | recvmmsg fd msgvec vlen flags:message-flags timeout_ptr
300: fanotify_init flags event_flags | fanotify_mark fd flags mask dfd pathname | prlimit64 pid resource:resource new_rlim old_rlim
303: name_to_handle_at dfd pathname handle mount_id flags:at-flags | open_by_handle_at mountdirfd handle flags:open-flags
305: clock_adjtime clockid:clock buf | syncfs fd | sendmmsg fd msgvec vlen flags:message-flags | setns fd nstype:clone-flags
309: getcpu cpu_ptr node_ptr cache | process_vm_readv pid local_iov liovcnt remote_iov riovcnt flags
311: process_vm_writev pid local_iov liovcnt remote_iov riovcnt flags | kcmp pid1 pid2 type idx1 idx2 | finit_module fd args flags
314: sched_setattr pid attr flags | sched_getattr pid attr size flags | renameat2 olddfd oldpath newdfd newpath flags:rename-flags
317: seccomp operation flags args | getrandom buf count flags:random-flags | memfd_create text flags:memfd-flags
320: kexec_file_load kernel_fd initrd_fd cmdline_len cmdline flags | bpf cmd attr size | execveat dfd pathname argv envp flags:at-flags
323: userfaultfd flags | membarrier cmd flags cpu_id | mlock2 addr length flags
326: copy_file_range in_fd in_offset_ptr out_fd out_offset_ptr count flags | preadv2 fd iov iovcnt offset offset_high flags
328: pwritev2 fd iov iovcnt offset offset_high flags | pkey_mprotect addr length prot pkey | pkey_alloc flags access_rights
331: pkey_free pkey | statx dfd pathname flags:at-flags mask statxbuf | io_pgetevents ctx min_nr nr_events events timeout_ptr usig
334: rseq rseq_ptr length flags sig | uretprobe
424: pidfd_send_signal pidfd signum info flags | io_uring_setup entries params | io_uring_enter fd to_submit min_complete flags sig
427: io_uring_register fd opcode arg nr_args | open_tree dfd pathname flags | move_mount olddfd oldpath newdfd newpath flags
430: fsopen text flags | fsconfig fd cmd key_ptr value aux | fsmount fd flags attr_flags | fspick dfd pathname flags
434: pidfd_open pid flags | clone3 cl_args size | close_range first_fd last_fd flags | openat2 dfd pathname how_ptr size
438: pidfd_getfd pidfd targetfd flags | faccessat2 dfd pathname mode:access-mode flags:access-flags
440: process_madvise pidfd iov iovcnt advice:memory-advice flags | epoll_pwait2 epfd events maxevents timeout_ptr sigmask sigsetsize
442: mount_setattr dfd pathname flags attr size | quotactl_fd fd cmd id addr | landlock_create_ruleset attr size flags
445: landlock_add_rule fd rule_type attr flags | landlock_restrict_self fd flags | memfd_secret flags | process_mrelease pidfd flags
449: futex_waitv waiters nr_futexes flags timeout_ptr clockid | set_mempolicy_home_node addr length home_node flags
451: cachestat fd range_ptr cstat flags | fchmodat2 dfd pathname mode flags:at-flags | map_shadow_stack addr size flags
454: futex_wake uaddr mask nr flags | futex_wait uaddr val mask flags timeout_ptr clockid
456: futex_requeue waiters flags nr_wake nr_requeue | statmount req buf size flags | listmount req mnt_ids count flags
459: lsm_get_self_attr attr ctx_ptr size_ptr flags | lsm_set_self_attr attr ctx_ptr size flags | lsm_list_modules ids_ptr size_ptr flags
462: mseal addr length flags | setxattrat dfd pathname flags name args size | getxattrat dfd pathname flags name args size
465: listxattrat dfd pathname flags list size | removexattrat dfd pathname flags name | open_tree_attr dfd pathname flags attr size
"""

# What an argument of a name is, where the table does not say and it is not a pointer or a set of bits (hexadecimal); formats of TraceArgument.
_WORDS = {
    "fd": "fd oldfd newfd dfd olddfd newdfd out_fd in_fd epfd group_fd pidfd targetfd mountdirfd kernel_fd initrd_fd first_fd last_fd",
    "path": "pathname oldpath newpath target linkpath newroot putold source",
    "signed": """
        count size length new_length nfds timeout offset iovcnt seconds status pid tgid pgid uid gid ruid euid suid rgid egid sgid
        backlog addrlen optlen protocol optname key shmid semid msqid nsems semnum nsops which who prio policy sigsetsize maxevents
        cpu vlen timerid cmd to_submit min_complete nr_events min_nr entries option pkey pid1 pid2 operation liovcnt riovcnt wd
        initval plen keyring nr_args inc page_offset length_low call
    """,
    "octal": "mode",
    "signal": "signum",
    "protection": "prot",
}
_FORMATS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
# Calls of which the kernel does not come back.
NO_RETURN = frozenset({"exit", "exit_group"})
# Calls that answer with an address.
_ADDRESSES = frozenset({"mmap", "mmap2", "brk", "mremap", "shmat"})


@dataclass(frozen=True, slots=True)
class SystemCall:
    number: int
    name: str
    arguments: tuple[tuple[str, str], ...]  # name, format ("fd", "path", "signed", "octal", "hex", ...)
    result: str  # format: "errno", "errno-hex"

    @property
    def paths(self) -> tuple[int, ...]:
        """Positions of its arguments that are path names; at most two."""
        return tuple(position for position, (_, kind) in enumerate(self.arguments) if kind == "path")

    @property
    def address(self) -> int | None:
        """Position of its argument that is a socket's address, whose length is the next argument."""
        return next((position for position, (_, kind) in enumerate(self.arguments) if kind == "socket-address"), None)


def parse_call(number: int, words: str) -> SystemCall:
    """words: a name and its arguments, each perhaps with a colon and its format."""
    name, *arguments = words.split()
    pairs = (argument.partition(":") for argument in arguments)
    kinds = tuple((argument, kind or _FORMATS.get(argument, "hex")) for argument, _, kind in pairs)
    return SystemCall(number, name, kinds, "errno-hex" if name in _ADDRESSES else "errno")


def _parse() -> dict[int, SystemCall]:
    found: dict[int, SystemCall] = {}
    for line in _CALLS.strip().splitlines():
        first, _, calls = line.partition(":")
        for number, call in enumerate(calls.split("|"), int(first)):
            found[number] = parse_call(number, call)
    return found


CALLS = _parse()

"""Linux's system calls on x86-64: number, name, arguments (arch/x86/entry/syscalls/syscall_64.tbl; man 2 of each)."""

from __future__ import annotations

from dataclasses import dataclass

# Lines of a first number and the calls from there on, one each: name, then its arguments; "-" = no such call.
_CALLS = """
0: read fd buf count | write fd buf count | open pathname open_flags mode | close fd | stat pathname statbuf | fstat fd statbuf
6: lstat pathname statbuf | poll fds nfds timeout | lseek fd offset whence | mmap addr length prot flags fd offset
10: mprotect addr length prot | munmap addr length | brk addr | rt_sigaction signum act oldact sigsetsize
14: rt_sigprocmask how set oldset sigsetsize | rt_sigreturn | ioctl fd request argp | pread64 fd buf count offset
18: pwrite64 fd buf count offset | readv fd iov iovcnt | writev fd iov iovcnt | access pathname mode | pipe pipefd
23: select nfds readfds writefds exceptfds timeout_ptr | sched_yield | mremap addr length new_length flags new_addr
26: msync addr length flags | mincore addr length vec | madvise addr length advice | shmget key size flags
30: shmat shmid addr flags | shmctl shmid cmd buf | dup oldfd | dup2 oldfd newfd | pause | nanosleep rqtp rmtp
36: getitimer which value | alarm seconds | setitimer which value ovalue | getpid | sendfile out_fd in_fd offset_ptr count
41: socket family type protocol | connect fd addr addrlen | accept fd addr addrlen_ptr
44: sendto fd buf count flags addr addrlen | recvfrom fd buf count flags addr addrlen_ptr | sendmsg fd msg flags
47: recvmsg fd msg flags | shutdown fd how | bind fd addr addrlen | listen fd backlog | getsockname fd addr addrlen_ptr
52: getpeername fd addr addrlen_ptr | socketpair family type protocol pipefd | setsockopt fd level optname optval optlen
55: getsockopt fd level optname optval optlen_ptr | clone flags stack parent_tid child_tid tls | fork | vfork
59: execve pathname argv envp | exit status | wait4 pid wstatus options rusage | kill pid signum | uname buf
64: semget key nsems flags | semop semid sops nsops | semctl semid semnum cmd arg | shmdt addr | msgget key flags
69: msgsnd msqid msgp count flags | msgrcv msqid msgp count msgtyp flags | msgctl msqid cmd buf | fcntl fd cmd arg
73: flock fd operation | fsync fd | fdatasync fd | truncate pathname length | ftruncate fd length | getdents fd dirent count
79: getcwd buf size | chdir pathname | fchdir fd | rename oldpath newpath | mkdir pathname mode | rmdir pathname
85: creat pathname mode | link oldpath newpath | unlink pathname | symlink target linkpath | readlink pathname buf size
90: chmod pathname mode | fchmod fd mode | chown pathname uid gid | fchown fd uid gid | lchown pathname uid gid | umask mode
96: gettimeofday tv tz | getrlimit resource rlim | getrusage who rusage | sysinfo info | times buf
101: ptrace request pid addr data | getuid | syslog type buf size | getgid | setuid uid | setgid gid | geteuid | getegid
109: setpgid pid pgid | getppid | getpgrp | setsid | setreuid ruid euid | setregid rgid egid | getgroups size list
116: setgroups size list | setresuid ruid euid suid | getresuid ruid_ptr euid_ptr suid_ptr | setresgid rgid egid sgid
120: getresgid rgid_ptr egid_ptr sgid_ptr | getpgid pid | setfsuid uid | setfsgid gid | getsid pid | capget header data
126: capset header data | rt_sigpending set sigsetsize | rt_sigtimedwait set info timeout_ptr sigsetsize
129: rt_sigqueueinfo pid signum info | rt_sigsuspend set sigsetsize | sigaltstack ss old_ss | utime pathname times
133: mknod pathname mode dev | uselib pathname | personality persona | ustat dev buf | statfs pathname buf | fstatfs fd buf
139: sysfs option arg1 arg2 | getpriority which who | setpriority which who prio | sched_setparam pid param
143: sched_getparam pid param | sched_setscheduler pid policy param | sched_getscheduler pid | sched_get_priority_max policy
147: sched_get_priority_min policy | sched_rr_get_interval pid tp | mlock addr length | munlock addr length
151: mlockall flags | munlockall | vhangup | modify_ldt func ptr count | pivot_root newroot putold | _sysctl args
157: prctl option arg2 arg3 arg4 arg5 | arch_prctl code addr | adjtimex buf | setrlimit resource rlim | chroot pathname
162: sync | acct pathname | settimeofday tv tz | mount source target type_ptr flags data | umount2 pathname flags
167: swapon pathname flags | swapoff pathname | reboot magic magic2 cmd arg | sethostname text length
171: setdomainname text length | iopl level | ioperm from num on | create_module text size | init_module addr length args
176: delete_module text flags | get_kernel_syms table | query_module text which buf size ret | quotactl cmd special id addr
180: nfsservctl cmd argp resp | getpmsg | putpmsg | afs_syscall | tuxcall | security | gettid | readahead fd offset count
188: setxattr pathname name value size flags | lsetxattr pathname name value size flags | fsetxattr fd name value size flags
191: getxattr pathname name value size | lgetxattr pathname name value size | fgetxattr fd name value size
194: listxattr pathname list size | llistxattr pathname list size | flistxattr fd list size | removexattr pathname name
198: lremovexattr pathname name | fremovexattr fd name | tkill pid signum | time tloc
202: futex uaddr op val timeout_ptr uaddr2 val3 | sched_setaffinity pid size mask | sched_getaffinity pid size mask
205: set_thread_area info | io_setup nr_events ctx_ptr | io_destroy ctx | io_getevents ctx min_nr nr_events events timeout_ptr
209: io_submit ctx nr_events iocbpp | io_cancel ctx iocb result_ptr | get_thread_area info | lookup_dcookie cookie buf size
213: epoll_create size | epoll_ctl_old | epoll_wait_old | remap_file_pages addr length prot offset flags
217: getdents64 fd dirent count | set_tid_address tidptr | restart_syscall | semtimedop semid sops nsops timeout_ptr
221: fadvise64 fd offset length advice | timer_create clockid sevp timerid_ptr | timer_settime timerid flags value ovalue
224: timer_gettime timerid value | timer_getoverrun timerid | timer_delete timerid | clock_settime clockid tp
228: clock_gettime clockid tp | clock_getres clockid tp | clock_nanosleep clockid flags rqtp rmtp | exit_group status
232: epoll_wait epfd events maxevents timeout | epoll_ctl epfd op fd event | tgkill tgid pid signum | utimes pathname times
236: vserver | mbind addr length mode_value nodemask maxnode flags | set_mempolicy policy nodemask maxnode
239: get_mempolicy policy_ptr nodemask maxnode addr flags | mq_open text flags mode attr | mq_unlink text
242: mq_timedsend fd buf count prio timeout_ptr | mq_timedreceive fd buf count prio_ptr timeout_ptr | mq_notify fd sevp
245: mq_getsetattr fd newattr oldattr | kexec_load entry nr_segments segments flags | waitid which pid info options rusage
248: add_key type_ptr description payload plen keyring | request_key type_ptr description callout keyring
250: keyctl operation arg2 arg3 arg4 arg5 | ioprio_set which who ioprio | ioprio_get which who | inotify_init
254: inotify_add_watch fd pathname mask | inotify_rm_watch fd wd | migrate_pages pid maxnode old_nodes new_nodes
257: openat dfd pathname open_flags mode | mkdirat dfd pathname mode | mknodat dfd pathname mode dev
260: fchownat dfd pathname uid gid flags | futimesat dfd pathname times | newfstatat dfd pathname statbuf flags
263: unlinkat dfd pathname flags | renameat olddfd oldpath newdfd newpath | linkat olddfd oldpath newdfd newpath flags
266: symlinkat target newdfd linkpath | readlinkat dfd pathname buf size | fchmodat dfd pathname mode
269: faccessat dfd pathname mode | pselect6 nfds readfds writefds exceptfds timeout_ptr sigmask
271: ppoll fds nfds timeout_ptr sigmask sigsetsize | unshare flags | set_robust_list head length
274: get_robust_list pid head_ptr length_ptr | splice in_fd in_offset_ptr out_fd out_offset_ptr count flags
276: tee in_fd out_fd count flags | sync_file_range fd offset count flags | vmsplice fd iov iovcnt flags
279: move_pages pid count pages nodes_ptr status_ptr flags | utimensat dfd pathname times flags
281: epoll_pwait epfd events maxevents timeout sigmask sigsetsize | signalfd fd mask sizemask | timerfd_create clockid flags
284: eventfd initval | fallocate fd mode_value offset length | timerfd_settime fd flags value ovalue | timerfd_gettime fd value
288: accept4 fd addr addrlen_ptr flags | signalfd4 fd mask sizemask flags | eventfd2 initval flags | epoll_create1 flags
292: dup3 oldfd newfd flags | pipe2 pipefd flags | inotify_init1 flags | preadv fd iov iovcnt offset offset_high
296: pwritev fd iov iovcnt offset offset_high | rt_tgsigqueueinfo tgid pid signum info
298: perf_event_open attr pid cpu group_fd flags | recvmmsg fd msgvec vlen flags timeout_ptr | fanotify_init flags event_flags
301: fanotify_mark fd flags mask dfd pathname | prlimit64 pid resource new_rlim old_rlim
303: name_to_handle_at dfd pathname handle mount_id flags | open_by_handle_at mountdirfd handle open_flags
305: clock_adjtime clockid buf | syncfs fd | sendmmsg fd msgvec vlen flags | setns fd nstype | getcpu cpu_ptr node_ptr cache
310: process_vm_readv pid local_iov liovcnt remote_iov riovcnt flags
311: process_vm_writev pid local_iov liovcnt remote_iov riovcnt flags | kcmp pid1 pid2 type idx1 idx2
313: finit_module fd args flags | sched_setattr pid attr flags | sched_getattr pid attr size flags
316: renameat2 olddfd oldpath newdfd newpath flags | seccomp operation flags args | getrandom buf count flags
319: memfd_create text flags | kexec_file_load kernel_fd initrd_fd cmdline_len cmdline flags | bpf cmd attr size
322: execveat dfd pathname argv envp flags | userfaultfd flags | membarrier cmd flags cpu_id | mlock2 addr length flags
326: copy_file_range in_fd in_offset_ptr out_fd out_offset_ptr count flags
327: preadv2 fd iov iovcnt offset offset_high flags | pwritev2 fd iov iovcnt offset offset_high flags
329: pkey_mprotect addr length prot pkey | pkey_alloc flags access_rights | pkey_free pkey
332: statx dfd pathname flags mask statxbuf | io_pgetevents ctx min_nr nr_events events timeout_ptr usig
334: rseq rseq_ptr length flags sig | uretprobe
424: pidfd_send_signal pidfd signum info flags | io_uring_setup entries params | io_uring_enter fd to_submit min_complete flags sig
427: io_uring_register fd opcode arg nr_args | open_tree dfd pathname flags
429: move_mount olddfd oldpath newdfd newpath flags | fsopen text flags | fsconfig fd cmd key_ptr value aux | fsmount fd flags attr_flags
433: fspick dfd pathname flags | pidfd_open pid flags | clone3 cl_args size | close_range first_fd last_fd flags
437: openat2 dfd pathname how_ptr size | pidfd_getfd pidfd targetfd flags | faccessat2 dfd pathname mode flags
440: process_madvise pidfd iov iovcnt advice flags | epoll_pwait2 epfd events maxevents timeout_ptr sigmask sigsetsize
442: mount_setattr dfd pathname flags attr size | quotactl_fd fd cmd id addr | landlock_create_ruleset attr size flags
445: landlock_add_rule fd rule_type attr flags | landlock_restrict_self fd flags | memfd_secret flags | process_mrelease pidfd flags
449: futex_waitv waiters nr_futexes flags timeout_ptr clockid | set_mempolicy_home_node addr length home_node flags
451: cachestat fd range_ptr cstat flags | fchmodat2 dfd pathname mode flags | map_shadow_stack addr size flags
454: futex_wake uaddr mask nr flags | futex_wait uaddr val mask flags timeout_ptr clockid | futex_requeue waiters flags nr_wake nr_requeue
457: statmount req buf size flags | listmount req mnt_ids count flags | lsm_get_self_attr attr ctx_ptr size_ptr flags
460: lsm_set_self_attr attr ctx_ptr size flags | lsm_list_modules ids_ptr size_ptr flags | mseal addr length flags
463: setxattrat dfd pathname flags name args size | getxattrat dfd pathname flags name args size
465: listxattrat dfd pathname flags list size | removexattrat dfd pathname flags name | open_tree_attr dfd pathname flags attr size
"""

# What an argument of a name is, where that is not a pointer or a set of bits (hexadecimal); formats of TraceArgument.
_WORDS = {
    "fd": "fd oldfd newfd dfd olddfd newdfd out_fd in_fd epfd group_fd pidfd targetfd mountdirfd kernel_fd initrd_fd first_fd last_fd",
    "path": "pathname oldpath newpath target linkpath newroot putold source",
    "signed": """
        count size length new_length nfds timeout offset whence iovcnt seconds status pid tgid pgid uid gid ruid euid suid rgid
        egid sgid backlog addrlen optlen family protocol level optname key shmid semid msqid nsems semnum nsops which who prio
        policy resource sigsetsize maxevents op cpu vlen clockid timerid advice how cmd to_submit min_complete nr_events min_nr
        entries option code pkey pid1 pid2 operation liovcnt riovcnt wd initval plen keyring nr_args
    """,
    "octal": "mode",
    "signal": "signum",
    "protection": "prot",
    "open-flags": "open_flags",
}
_FORMATS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
# Calls of which the kernel does not come back.
NO_RETURN = frozenset({"exit", "exit_group"})
# Calls that answer with an address.
_ADDRESSES = frozenset({"mmap", "brk", "mremap", "shmat"})


@dataclass(frozen=True, slots=True)
class SystemCall:
    number: int
    name: str
    arguments: tuple[tuple[str, str], ...]  # name, format ("fd", "path", "signed", "octal", "hex")
    result: str  # format: "errno", "errno-hex"

    @property
    def paths(self) -> tuple[int, ...]:
        """Positions of its arguments that are path names; at most two."""
        return tuple(position for position, (_, kind) in enumerate(self.arguments) if kind == "path")


def _parse() -> dict[int, SystemCall]:
    found: dict[int, SystemCall] = {}
    for line in _CALLS.strip().splitlines():
        first, _, calls = line.partition(":")
        for number, call in enumerate(calls.split("|"), int(first)):
            name, *arguments = call.split()
            kinds = tuple(("flags" if argument == "open_flags" else argument, _FORMATS.get(argument, "hex")) for argument in arguments)
            found[number] = SystemCall(number, name, kinds, "errno-hex" if name in _ADDRESSES else "errno")
    return found


CALLS = _parse()

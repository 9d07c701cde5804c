"""How arguments of trace points read: TraceArgument.format -> text of a 64-bit value.

The names are those of Linux on x86-64 (include/uapi/); what has no name here is a number, as strace has it.
"""

from __future__ import annotations

import errno
import ipaddress
import signal
import struct
from collections.abc import Callable, Mapping

_SIGN_64, _MODULUS_64 = 1 << 63, 1 << 64
# Linux's convention, which the hypercall ABI shares: the last 4095 values are negative errnos. 32-bit guests return
# 32 bits of them.
_ERRNO_MAX = 4095
Format = Callable[[int], str]


def duration_text(nanoseconds: int) -> str:
    """1234 -> "1.2us"."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.1f}{unit}"
    return f"{nanoseconds}ns"


# What the kernel uses inside; seen by tracers only (include/linux/errno.h).
_RESTARTS = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}


def _errno_text(value: int) -> str:
    for modulus in (_MODULUS_64, 1 << 32):
        number = modulus - value
        if 0 < number <= _ERRNO_MAX:
            return f"-{errno.errorcode.get(number) or _RESTARTS.get(number, number)}"
    return str(value)


def _bytes_text(value: int) -> str:
    text = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in _trimmed(value)
    )
    return f'"{text}"'


def _trimmed(value: int) -> bytes:
    return value.to_bytes(8, "little").rstrip(b"\0")


def _signed(value: int) -> int:
    if value >= _SIGN_64:
        return value - _MODULUS_64
    # An int in a register: -1 may come as 32 bits of it.
    return value - (1 << 32) if 0xFFFFF000 <= value < 1 << 32 else value


def _descriptor_text(value: int) -> str:
    number = _signed(value)
    return "AT_FDCWD" if number == -100 else str(number)


def quoted(text: bytes) -> str:
    return '"' + "".join(
        f"\\{char}" if char in '"\\' else char if char.isprintable() else f"\\x{ord(char):02x}"
        for char in text.decode("utf-8", "replace")
    ) + '"'


def _pointer_text(value: int) -> str:
    return f"{value:#x}" if value else "NULL"


def _numbered(words: str, first: int = 0) -> dict[int, str]:
    """Names of consecutive numbers; "-" has none."""
    return {number: name for number, name in enumerate(words.split(), first) if name != "-"}


def _bits(words: str) -> dict[str, int]:
    """Names of single bits from bit 0 on; "-" has none."""
    return {name: 1 << bit for bit, name in enumerate(words.split()) if name != "-"}


def _names(value: int, names: Mapping[str, int]) -> list[str]:
    found = []
    for name, bits in names.items():
        if bits and value & bits == bits:
            found.append(name)
            value &= ~bits
    return [*found, *([f"{value:#x}"] if value else [])]


def _flags(names: Mapping[str, int], none: str = "0") -> Format:
    """An int of flags. A name of several bits stands before those that it holds."""
    return lambda value: "|".join(_names(value & 0xFFFFFFFF, names)) or none


def _one_of(names: Mapping[int, str]) -> Format:
    return lambda value: names.get(_signed(value), str(_signed(value)))


def _one_and_flags(names: Mapping[int, str], mask: int, flags: Mapping[str, int]) -> Format:
    """A number in the low bits (mask) and flags above it."""

    def text(value: int) -> str:
        low = value & mask
        return "|".join([names.get(low, f"{low:#x}"), *_names(value & 0xFFFFFFFF & ~mask, flags)])

    return text


_OPEN_FLAGS = {
    "O_TMPFILE": 0o20200000, "O_SYNC": 0o4010000, "O_CREAT": 0o100, "O_EXCL": 0o200, "O_NOCTTY": 0o400, "O_TRUNC": 0o1000,
    "O_APPEND": 0o2000, "O_NONBLOCK": 0o4000, "O_DSYNC": 0o10000, "FASYNC": 0o20000, "O_DIRECT": 0o40000, "O_LARGEFILE": 0o100000,
    "O_DIRECTORY": 0o200000, "O_NOFOLLOW": 0o400000, "O_NOATIME": 0o1000000, "O_CLOEXEC": 0o2000000, "O_PATH": 0o10000000,
}  # fmt: skip
_PROTECTIONS = {"PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4, "PROT_SEM": 8, "PROT_GROWSDOWN": 1 << 24, "PROT_GROWSUP": 1 << 25}
_MAP_FLAGS = {
    "MAP_FIXED": 0x10, "MAP_ANONYMOUS": 0x20, "MAP_32BIT": 0x40, "MAP_GROWSDOWN": 0x100, "MAP_DENYWRITE": 0x800, "MAP_EXECUTABLE": 0x1000,
    "MAP_LOCKED": 0x2000, "MAP_NORESERVE": 0x4000, "MAP_POPULATE": 0x8000, "MAP_NONBLOCK": 0x10000, "MAP_STACK": 0x20000,
    "MAP_HUGETLB": 0x40000, "MAP_SYNC": 0x80000, "MAP_FIXED_NOREPLACE": 0x100000,
}  # fmt: skip
_CLONE_FLAGS = _bits(
    "- - - - - - - CLONE_NEWTIME CLONE_VM CLONE_FS CLONE_FILES CLONE_SIGHAND CLONE_PIDFD CLONE_PTRACE CLONE_VFORK CLONE_PARENT CLONE_THREAD"
    " CLONE_NEWNS CLONE_SYSVSEM CLONE_SETTLS CLONE_PARENT_SETTID CLONE_CHILD_CLEARTID CLONE_DETACHED CLONE_UNTRACED CLONE_CHILD_SETTID"
    " CLONE_NEWCGROUP CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET CLONE_IO"
)
_FAMILIES = _numbered(
    "AF_UNSPEC AF_UNIX AF_INET AF_AX25 AF_IPX AF_APPLETALK AF_NETROM AF_BRIDGE AF_ATMPVC AF_X25 AF_INET6 AF_ROSE AF_DECnet AF_NETBEUI"
    " AF_SECURITY AF_KEY AF_NETLINK AF_PACKET"
) | {29: "AF_CAN", 31: "AF_BLUETOOTH", 38: "AF_ALG", 40: "AF_VSOCK", 44: "AF_XDP"}
_SOCKET_TYPES = _numbered("SOCK_STREAM SOCK_DGRAM SOCK_RAW SOCK_RDM SOCK_SEQPACKET SOCK_DCCP", 1) | {10: "SOCK_PACKET"}
_SOCKET_FLAGS = {"SOCK_CLOEXEC": 0o2000000, "SOCK_NONBLOCK": 0o4000}
_MESSAGE_FLAGS = _bits(
    "MSG_OOB MSG_PEEK MSG_DONTROUTE MSG_CTRUNC MSG_PROBE MSG_TRUNC MSG_DONTWAIT MSG_EOR MSG_WAITALL MSG_FIN MSG_SYN MSG_CONFIRM MSG_RST"
    " MSG_ERRQUEUE MSG_NOSIGNAL MSG_MORE MSG_WAITFORONE"
) | {"MSG_ZEROCOPY": 1 << 26, "MSG_FASTOPEN": 1 << 29, "MSG_CMSG_CLOEXEC": 1 << 30}
_AT_FLAGS = {
    "AT_SYMLINK_NOFOLLOW": 0x100, "AT_REMOVEDIR": 0x200, "AT_SYMLINK_FOLLOW": 0x400, "AT_NO_AUTOMOUNT": 0x800, "AT_EMPTY_PATH": 0x1000,
    "AT_STATX_FORCE_SYNC": 0x2000, "AT_STATX_DONT_SYNC": 0x4000, "AT_RECURSIVE": 0x8000,
}  # fmt: skip
_ACCESS_FLAGS = {"AT_EACCESS" if name == "AT_REMOVEDIR" else name: bits for name, bits in _AT_FLAGS.items()}
_STAT_FLAGS = {name: bits for name, bits in _AT_FLAGS.items() if name != "AT_REMOVEDIR"}
_WAIT_OPTIONS = {
    "WNOHANG": 1, "WSTOPPED": 2, "WEXITED": 4, "WCONTINUED": 8, "WNOWAIT": 1 << 24, "__WNOTHREAD": 1 << 29, "__WALL": 1 << 30, "__WCLONE": 1 << 31,
}  # fmt: skip
_FUTEX = _numbered(
    "FUTEX_WAIT FUTEX_WAKE FUTEX_FD FUTEX_REQUEUE FUTEX_CMP_REQUEUE FUTEX_WAKE_OP FUTEX_LOCK_PI FUTEX_UNLOCK_PI FUTEX_TRYLOCK_PI"
    " FUTEX_WAIT_BITSET FUTEX_WAKE_BITSET FUTEX_WAIT_REQUEUE_PI FUTEX_CMP_REQUEUE_PI FUTEX_LOCK_PI2"
)
_CLOCKS = _numbered(
    "CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC_RAW CLOCK_REALTIME_COARSE"
    " CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM - CLOCK_TAI"
)
_FCNTL = _numbered(
    "F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_GETLK F_SETLK F_SETLKW F_SETOWN F_GETOWN F_SETSIG F_GETSIG F_GETLK64 F_SETLK64 F_SETLKW64"
    " F_SETOWN_EX F_GETOWN_EX"
) | _numbered("F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW", 36) | {
    1024: "F_SETLEASE", 1025: "F_GETLEASE", 1026: "F_NOTIFY", 1030: "F_DUPFD_CLOEXEC", 1031: "F_SETPIPE_SZ", 1032: "F_GETPIPE_SZ",
    1033: "F_ADD_SEALS", 1034: "F_GET_SEALS",
}  # fmt: skip
_IOCTLS = _numbered(
    "TCGETS TCSETS TCSETSW TCSETSF TCGETA TCSETA TCSETAW TCSETAF TCSBRK TCXONC TCFLSH TIOCEXCL TIOCNXCL TIOCSCTTY TIOCGPGRP TIOCSPGRP"
    " TIOCOUTQ TIOCSTI TIOCGWINSZ TIOCSWINSZ TIOCMGET TIOCMBIS TIOCMBIC TIOCMSET TIOCGSOFTCAR TIOCSSOFTCAR FIONREAD TIOCLINUX TIOCCONS"
    " TIOCGSERIAL TIOCSSERIAL TIOCPKT FIONBIO TIOCNOTTY TIOCSETD TIOCGETD", 0x5401,
) | {0x5450: "FIONCLEX", 0x5451: "FIOCLEX", 0x5452: "FIOASYNC", 0x80045430: "TIOCGPTN", 0x40045431: "TIOCSPTLCK"} | _numbered(
    "SIOCGIFNAME SIOCSIFLINK SIOCGIFCONF SIOCGIFFLAGS SIOCSIFFLAGS SIOCGIFADDR SIOCSIFADDR", 0x8910,
) | {0x8927: "SIOCGIFHWADDR", 0x8933: "SIOCGIFINDEX"}
_PRCTL = _numbered(
    "PR_SET_PDEATHSIG PR_GET_PDEATHSIG PR_GET_DUMPABLE PR_SET_DUMPABLE PR_GET_UNALIGN PR_SET_UNALIGN PR_GET_KEEPCAPS PR_SET_KEEPCAPS", 1
) | {
    15: "PR_SET_NAME", 16: "PR_GET_NAME", 21: "PR_GET_SECCOMP", 22: "PR_SET_SECCOMP", 23: "PR_CAPBSET_READ", 24: "PR_CAPBSET_DROP",
    28: "PR_SET_SECUREBITS", 36: "PR_SET_CHILD_SUBREAPER", 37: "PR_GET_CHILD_SUBREAPER", 38: "PR_SET_NO_NEW_PRIVS",
    39: "PR_GET_NO_NEW_PRIVS", 40: "PR_GET_TID_ADDRESS", 41: "PR_SET_THP_DISABLE", 47: "PR_CAP_AMBIENT", 0x53564D41: "PR_SET_VMA",
}  # fmt: skip
_ARCH_PRCTL = _numbered("ARCH_SET_GS ARCH_SET_FS ARCH_GET_FS ARCH_GET_GS", 0x1001) | {0x1011: "ARCH_GET_CPUID", 0x1012: "ARCH_SET_CPUID"}
_RESOURCES = _numbered(
    "RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC RLIMIT_NOFILE RLIMIT_MEMLOCK RLIMIT_AS"
    " RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME"
)
_ADVICE = _numbered("MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED - - - MADV_FREE MADV_REMOVE MADV_DONTFORK"
                    " MADV_DOFORK MADV_MERGEABLE MADV_UNMERGEABLE MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTDUMP MADV_DODUMP"
                    " MADV_WIPEONFORK MADV_KEEPONFORK MADV_COLD MADV_PAGEOUT MADV_POPULATE_READ MADV_POPULATE_WRITE")  # fmt: skip
_MOUNT_FLAGS = _bits(
    "MS_RDONLY MS_NOSUID MS_NODEV MS_NOEXEC MS_SYNCHRONOUS MS_REMOUNT MS_MANDLOCK MS_DIRSYNC MS_NOSYMFOLLOW - MS_NOATIME MS_NODIRATIME"
    " MS_BIND MS_MOVE MS_REC MS_SILENT MS_POSIXACL MS_UNBINDABLE MS_PRIVATE MS_SLAVE MS_SHARED MS_RELATIME - MS_I_VERSION MS_STRICTATIME"
    " MS_LAZYTIME"
)


def _signal_text(value: int) -> str:
    number = _signed(value)
    if 34 <= number <= 64:
        return "SIGRTMIN" if number == 34 else f"SIGRT_{number - 32}"
    return _SIGNALS.get(number) or {32: "SIGRTMIN", 33: "SIGRT_1"}.get(number, str(number))


_SIGNALS = {known.value: known.name for known in signal.Signals if known.value < 32}


def _clone_text(value: int) -> str:
    ends = value & 0xFF  # the signal at its end
    return "|".join([*_names(value & 0xFFFFFFFF & ~0xFF, _CLONE_FLAGS), *([_signal_text(ends)] if ends else [])]) or "0"


def _access_text(value: int) -> str:
    return "|".join(_names(value & 0xFFFFFFFF, {"R_OK": 4, "W_OK": 2, "X_OK": 1})) or "F_OK"


def _prefixed(prefix: str, words: str, own: Mapping[str, int] | None = None) -> Format:
    """Flags of a new descriptor: those of open under another prefix."""
    return _flags({**(own or {}), **{f"{prefix}_{word}": _OPEN_FLAGS[f"O_{word}"] for word in words.split()}})


# TraceArgument.format -> how a 64-bit value is printed.
FORMATS: dict[str, Format] = {
    "hex": lambda value: f"{value:#x}",
    "dec": str,
    "signed": lambda value: str(_signed(value)),
    "vector": lambda value: f"{value:#04x}",
    "bool": lambda value: "true" if value else "false",
    "ns": duration_text,
    "errno": _errno_text,
    "errno-hex": lambda value: _errno_text(value) if value > _MODULUS_64 - 4096 else f"{value:#x}",
    "fd": _descriptor_text,
    "octal": lambda value: f"0{value:o}" if value else "0",
    "signal": _signal_text,
    "path": _pointer_text,
    "socket-address": _pointer_text,
    "bytes": _bytes_text,
    "open-flags": _one_and_flags(_numbered("O_RDONLY O_WRONLY O_RDWR O_ACCMODE"), 3, _OPEN_FLAGS),
    "protection": _flags(_PROTECTIONS, "PROT_NONE"),
    "map-flags": _one_and_flags(_numbered("- MAP_SHARED MAP_PRIVATE MAP_SHARED_VALIDATE"), 0xF, _MAP_FLAGS),
    "remap-flags": _flags(_bits("MREMAP_MAYMOVE MREMAP_FIXED MREMAP_DONTUNMAP")),
    "sync-flags": _flags(_bits("MS_ASYNC MS_INVALIDATE MS_SYNC")),
    "memory-advice": _one_of(_ADVICE),
    "clone-flags": _clone_text,
    "socket-family": _one_of(_FAMILIES),
    "socket-type": _one_and_flags(_SOCKET_TYPES, 0xF, _SOCKET_FLAGS),
    "socket-flags": _flags(_SOCKET_FLAGS),
    "socket-level": _one_of({0: "SOL_IP", 1: "SOL_SOCKET", 6: "SOL_TCP", 17: "SOL_UDP", 41: "SOL_IPV6", 263: "SOL_PACKET", 270: "SOL_NETLINK"}),
    "message-flags": _flags(_MESSAGE_FLAGS),
    "shutdown-how": _one_of(_numbered("SHUT_RD SHUT_WR SHUT_RDWR")),
    "access-mode": _access_text,
    "access-flags": _flags(_ACCESS_FLAGS),
    "at-flags": _flags(_STAT_FLAGS),
    "unlink-flags": _flags(_AT_FLAGS),
    "whence": _one_of(_numbered("SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE")),
    "signal-how": _one_of(_numbered("SIG_BLOCK SIG_UNBLOCK SIG_SETMASK")),
    "wait-options": _flags(_WAIT_OPTIONS),
    "wait-which": _one_of(_numbered("P_ALL P_PID P_PGID P_PIDFD")),
    "futex-operation": _one_and_flags(_FUTEX, 0x7F, {"FUTEX_PRIVATE_FLAG": 128, "FUTEX_CLOCK_REALTIME": 256}),
    "clock": _one_of(_CLOCKS),
    "timer-flags": _flags({"TIMER_ABSTIME": 1}),
    "timerfd-flags": _prefixed("TFD", "CLOEXEC NONBLOCK"),
    "epoll-flags": _prefixed("EPOLL", "CLOEXEC"),
    "epoll-operation": _one_of(_numbered("EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD", 1)),
    "eventfd-flags": _prefixed("EFD", "CLOEXEC NONBLOCK", {"EFD_SEMAPHORE": 1}),
    "signalfd-flags": _prefixed("SFD", "CLOEXEC NONBLOCK"),
    "inotify-flags": _prefixed("IN", "CLOEXEC NONBLOCK"),
    "descriptor-flags": _flags({name: _OPEN_FLAGS[name] for name in ("O_CLOEXEC", "O_DIRECT", "O_NONBLOCK")}),
    "fcntl-command": _one_of(_FCNTL),
    "ioctl-request": lambda value: _IOCTLS.get(value & 0xFFFFFFFF, f"{value & 0xFFFFFFFF:#x}"),
    "prctl-option": _one_of(_PRCTL),
    "arch-prctl-code": lambda value: _ARCH_PRCTL.get(value, f"{value:#x}"),
    "resource": _one_of(_RESOURCES),
    "flock-operation": _flags({"LOCK_SH": 1, "LOCK_EX": 2, "LOCK_NB": 4, "LOCK_UN": 8}),
    "mount-flags": _flags(_MOUNT_FLAGS),
    "unmount-flags": _flags(_bits("MNT_FORCE MNT_DETACH MNT_EXPIRE UMOUNT_NOFOLLOW")),
    "memfd-flags": _flags(_bits("MFD_CLOEXEC MFD_ALLOW_SEALING MFD_HUGETLB MFD_NOEXEC_SEAL MFD_EXEC")),
    "random-flags": _flags(_bits("GRND_NONBLOCK GRND_RANDOM GRND_INSECURE")),
    "rename-flags": _flags(_bits("RENAME_NOREPLACE RENAME_EXCHANGE RENAME_WHITEOUT")),
    "usage-who": _one_of({0: "RUSAGE_SELF", -1: "RUSAGE_CHILDREN", 1: "RUSAGE_THREAD"}),
}


def socket_address(data: bytes) -> str:
    """struct sockaddr, as much of it as was there: `{AF_INET, 127.0.0.1:80}`."""
    if len(data) < 2:
        return quoted(data)
    (family,) = struct.unpack_from("<H", data)
    name, rest = _FAMILIES.get(family, str(family)), data[2:]
    try:
        return f"{{{', '.join([name, *_ADDRESSES.get(family, _other_address)(rest)])}}}"
    except struct.error:  # shorter than it should be
        return f"{{{', '.join([name, *_other_address(rest)])}}}"


def _other_address(rest: bytes) -> list[str]:
    return [rest.hex()] if rest else []


def _unix_address(rest: bytes) -> list[str]:
    if rest.startswith(b"\0"):  # of the abstract name space
        return ["@" + quoted(rest[1:])]
    path = rest.partition(b"\0")[0]
    return [quoted(path)] if path else []


def _inet_address(rest: bytes) -> list[str]:
    port, address = struct.unpack_from(">H4s", rest)
    return [f"{ipaddress.IPv4Address(address)}:{port}"]


def _inet6_address(rest: bytes) -> list[str]:
    port, flow, address = struct.unpack_from(">HI16s", rest)
    scope = f"%{int.from_bytes(rest[22:26], 'little')}" if any(rest[22:26]) else ""
    return [f"[{ipaddress.IPv6Address(address)}{scope}]:{port}", *([f"flow {flow:#x}"] if flow else [])]


def _netlink_address(rest: bytes) -> list[str]:
    _, pid, groups = struct.unpack_from("<HII", rest)
    return [f"pid {pid}", f"groups {groups:#x}"]


_ADDRESSES = {1: _unix_address, 2: _inet_address, 10: _inet6_address, 16: _netlink_address}
# Formats of arguments whose text came with the record -> how that reads; of others it is quoted.
TEXTS: dict[str, Callable[[bytes], str]] = {"socket-address": socket_address}



"""The OCI bundle's config.json (https://github.com/opencontainers/runtime-spec/blob/main/config.md): safe unless asked otherwise."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from hvd.backends.container.cgroup import limits
from hvd.backends.container.rootfs import FIRST_ID, IDS
from hvd.backends.container_spec import ContainerSpec, MountSpec
from hvd.errors import HvdError


def _words(text: str) -> list[str]:
    return text.split()


# What root inside may do to what is the container's own. Everything that reaches the host is not among them.
DEFAULT_CAPABILITIES = frozenset({
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
})  # fmt: skip
# By number (linux/capability.h).
_CAPABILITIES = _words(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST "
    "NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
    "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM "
    "BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
# System calls that reach beyond the container's namespaces, or whose use there is nearly always an attack. They answer EPERM.
REFUSED_CALLS = _words(
    "acct add_key bpf clock_adjtime clock_settime create_module delete_module finit_module fanotify_init get_kernel_syms "
    "get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind mount_setattr move_pages "
    "name_to_handle_at nfsservctl open_by_handle_at open_tree move_mount fsopen fsmount fsconfig fspick perf_event_open "
    "personality pivot_root process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key "
    "set_mempolicy settimeofday stime swapoff swapon sysfs _sysctl umount2 uselib userfaultfd ustat vm86 vm86old vserver "
    "io_uring_setup io_uring_enter io_uring_register"
)
MASKED_PATHS = [
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
]  # fmt: skip
READ_ONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_EPERM = 1
SHM_BYTES = 64 << 20


def config(spec: ContainerSpec, uid: str, root: Path, cgroup: str) -> dict[str, Any]:
    """root: where its file system is mounted. cgroup: path below each controller. Raises HvdError FIELD_INVALID (a user that
    the image does not know, a capability that this daemon does not have)."""
    user_id, group_id, groups = resolve_user(spec.user, root)
    document: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": str(root), "readonly": spec.read_only_root},
        "process": {
            "terminal": spec.tty,
            "user": {"uid": user_id, "gid": group_id, "additionalGids": groups},
            "args": list(spec.command),
            "env": [f"{key}={value}" for key, value in spec.environment.items()],
            "cwd": spec.working_directory,
            "noNewPrivileges": not spec.security.new_privileges,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), sorted(_capabilities(spec))),
        },
        "mounts": [*_own_mounts(spec), *map(_mount, spec.mounts)],
        "linux": {
            "namespaces": _namespaces(spec),
            "cgroupsPath": cgroup,
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                **limits.resources(spec.limits, spec.state_dir),
            },
        },
    }
    if not spec.security.host_user_namespace:
        ids = [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]
        document["linux"] |= {"uidMappings": ids, "gidMappings": ids}
    if not spec.security.seccomp_unconfined:
        document["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{"names": REFUSED_CALLS, "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM}],
        }
    return document


def _namespaces(spec: ContainerSpec) -> list[dict[str, str]]:
    kinds = ["pid", "mount", "ipc", "uts", "cgroup"]
    if not spec.security.host_user_namespace:
        kinds.append("user")
    namespaces = [{"type": kind} for kind in kinds]
    if not spec.host_network:
        # Made by the runtime, so that it belongs to the container's user namespace; whoever plugs it in comes later.
        namespaces.append({"type": "network"})
    return namespaces


def _own_mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    """What every container has."""
    quiet = ["nosuid", "noexec", "nodev"]
    # sysfs belongs to a network namespace: one of a user namespace that does not own it cannot be mounted anew.
    sys: dict[str, Any] = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]}
    if spec.host_network and not spec.security.host_user_namespace:
        sys = {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", *quiet, "ro"]}
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": [*quiet[:2], "newinstance", "ptmxmode=0666", "mode=0620"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*quiet, "mode=1777", f"size={SHM_BYTES}"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet},
        sys,
    ]  # fmt: skip


def _mount(mount: MountSpec) -> dict[str, Any]:
    access = "ro" if mount.read_only else "rw"
    if mount.kind == "tmpfs":
        options = ["nosuid", "nodev", access, "mode=1777", f"size={mount.size_bytes}"]
        return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}
    return {
        "destination": mount.target,
        "type": "bind",
        "source": str(mount.source),
        "options": ["rbind", "nosuid", "nodev", access],
    }


@functools.cache
def bounding_set() -> frozenset[str]:
    """The capabilities that this process can give away: asking for another makes a runtime fail."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("CapBnd:"):
            bits = int(line.split()[1], 16)
            return frozenset(f"CAP_{name}" for number, name in enumerate(_CAPABILITIES) if bits >> number & 1)
    raise RuntimeError("/proc/self/status has no CapBnd")


def _capabilities(spec: ContainerSpec) -> frozenset[str]:
    def named(names: tuple[str, ...]) -> frozenset[str]:
        found = frozenset(name if name.startswith("CAP_") or name == "ALL" else f"CAP_{name}" for name in names)
        return bounding_set() if "ALL" in found else found

    wanted = (DEFAULT_CAPABILITIES & bounding_set()) - named(spec.security.capabilities_drop)
    added = named(spec.security.capabilities_add)
    if unknown := added - bounding_set():
        raise HvdError(
            "FIELD_INVALID",
            field="container.security.capabilities_add",
            value=", ".join(sorted(unknown)),
            problem="this daemon cannot give it",
            remedy="it may have: " + ", ".join(sorted(bounding_set())),
        )
    return wanted | added


def resolve_user(user: str, root: Path) -> tuple[int, int, list[int]]:
    """(uid, gid, further gids) of "name", "name:group", "uid" or "uid:gid" by the root's own /etc/passwd and /etc/group.
    Raises HvdError FIELD_INVALID."""
    name, _, group = user.partition(":")
    entry = next((row for row in _rows(root, "etc/passwd", 7) if name in (row[0], row[2])), None)
    if entry is None and not _is_id(name):
        raise _unknown("user", name)
    user_id = int(entry[2]) if entry else int(name)
    group_id = int(entry[3]) if entry else 0
    groups = _rows(root, "etc/group", 4)
    if group:
        row = next((row for row in groups if group in (row[0], row[2])), None)
        if row is None and not _is_id(group):
            raise _unknown("group", group)
        return user_id, int(row[2]) if row else int(group), []
    further = [int(row[2]) for row in groups if entry and entry[0] in row[3].split(",") and int(row[2]) != group_id]
    return user_id, group_id, further


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < IDS


def _rows(root: Path, name: str, fields: int) -> list[list[str]]:
    """Of a file of the image, which is not trusted: no link is followed out of the root."""
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        etc = os.open("etc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            file = os.open(
                name.removeprefix("etc/"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=etc
            )
        finally:
            os.close(etc)
        with open(file, encoding="utf-8", errors="replace") as lines:
            rows = [line.rstrip("\n").split(":") for line in lines.read(1 << 20).splitlines()]
    except OSError:
        return []
    finally:
        os.close(directory)
    numbers = (2, 3) if fields == 7 else (2,)
    return [row for row in rows if len(row) == fields and all(_is_id(row[number]) for number in numbers)]


def _unknown(what: str, name: str) -> HvdError:
    return HvdError(
        "FIELD_INVALID",
        field="container.user",
        value=repr(name[:80]),
        problem=f"is no {what} of the image",
        remedy=f"use one of its /etc/{'passwd' if what == 'user' else 'group'}, or a number below {IDS}",
    )

"""SystemService: the daemon, the host under it, and which kinds of virtualisation run here."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
from collections.abc import Callable
from typing import Any, Final

from hvapi.v1 import system_pb2, system_pb2_grpc

from hvd import config
from hvd.backends.contract import Backend
from hvd.errors import HvdError
from hvd.guests.model import host_memory_bytes
from hvd.guests.placement import Probe
from hvd.guests.supervisor import Supervisor
from hvd.jail import group, landlock, user
from hvd.network.cards import check_user_mode
from hvd.network.networks import check_host

Finding = system_pb2.Finding
# Below this the next image or a few logs may not fit.
LITTLE_DISK_BYTES = 1 << 30
NETWORKS: Final[dict[str, Callable[[], None]]] = {
    "networks": lambda: check_host("a bridge of the host"),
    "network user": check_user_mode,
}
# A guest costs the daemon a handful of descriptors.
DESCRIPTORS_PER_GUEST = 8


class SystemService(system_pb2_grpc.SystemServiceServicer):
    def __init__(self, supervisor: Supervisor, settings: config.Config) -> None:
        self._supervisor = supervisor
        self._settings = settings
        # Where /metrics is really served, once it is.
        self.metrics_address = ""

    async def GetInfo(self, request: system_pb2.GetInfoRequest, context: Any) -> system_pb2.SystemInfo:
        probes = await self._probes()
        return system_pb2.SystemInfo(
            version=config.version(),
            python_version=platform.python_version(),
            state_dir=str(self._settings.state_dir),
            runtime_dir=str(self._settings.runtime_dir),
            metrics_address=self.metrics_address,
            pid=os.getpid(),
            host_kernel=platform.release(),
            host_cpus=len(os.sched_getaffinity(0)),
            host_memory_bytes=host_memory_bytes(),
            findings=[
                *(_backend_finding(backend, probe) for backend, probe in probes),
                *(finding for backend, probe in probes if probe.availability.available for finding in _remarks(backend)),
                *self._daemon_findings(),
                *await asyncio.to_thread(self._host_findings),
            ],
            guests=len(self._supervisor),
        )

    async def ListBackends(
        self, request: system_pb2.ListBackendsRequest, context: Any
    ) -> system_pb2.ListBackendsResponse:
        return system_pb2.ListBackendsResponse(backends=[_backend(*each) for each in await self._probes()])

    async def _probes(self) -> list[tuple[Backend, Probe]]:
        backends = self._supervisor.backends.all()
        return list(zip(backends, await asyncio.gather(*map(self._supervisor.backends.probe, backends)), strict=True))

    def _daemon_findings(self) -> list[system_pb2.Finding]:
        findings = [
            Finding(level=Finding.PROBLEM, subject="guests", message=oddity, remedy="look at it and remove it")
            for oddity in self._supervisor.oddities
        ]
        if self._supervisor.store_problem:
            findings.append(
                Finding(
                    level=Finding.PROBLEM,
                    subject="store",
                    message=f"changes of guests are not kept: {self._supervisor.store_problem}",
                    remedy=f"free space in {self._settings.state_dir}; the daemon tries again by itself",
                )
            )
        return findings

    def _host_findings(self) -> list[system_pb2.Finding]:
        findings = []
        for subject, directory in (
            ("state directory", self._settings.state_dir),
            ("runtime directory", self._settings.runtime_dir),
        ):
            free = shutil.disk_usage(directory).free
            findings.append(
                Finding(
                    level=Finding.OK if free >= LITTLE_DISK_BYTES else Finding.NOTE,
                    subject=subject,
                    message=f"{directory} has {free >> 20} MiB left",
                    remedy="" if free >= LITTLE_DISK_BYTES else "free some: images, logs and guest memory go there",
                )
            )
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and limit < self._settings.max_guests * DESCRIPTORS_PER_GUEST:
            findings.append(
                Finding(
                    level=Finding.NOTE,
                    subject="open files",
                    message=f"the limit of {limit} open files is too low for {self._settings.max_guests} guests (max-guests)",
                    remedy="raise it (ulimit -n, LimitNOFILE=), or lower max-guests",
                )
            )
        findings += [_network_finding(subject, check) for subject, check in NETWORKS.items()]
        findings.append(_jail_finding(self._settings.jail))
        findings.append(_landlock_finding(self._settings.jail))
        findings.append(_group_finding(self._settings))
        if os.geteuid() != 0:
            findings.append(
                Finding(
                    level=Finding.NOTE,
                    subject="privileges",
                    message="the daemon does not run as root: it offers what needs no privilege",
                    remedy="run it as root for the rest",
                )
            )
        if not shutil.which("cc"):
            findings.append(
                Finding(
                    level=Finding.NOTE,
                    subject="cc",
                    message="there is no C compiler: images cannot be built here",
                    remedy="install gcc and make",
                )
            )
        return findings


def _jail_finding(setting: str) -> system_pb2.Finding:
    """What holds a machine's processes back; containers have their runtime's own walls."""
    if setting == "off":
        message, remedy = "machines run as hvd's user, with all that it may do: the setting jail is off", "set it to auto"
    elif lacking := user.missing():
        message = f"machines run as hvd's user, held by a filter of system calls and what Landlock gives: hvd lacks {', '.join(lacking)}"
        remedy = "run hvd as root, or with these capabilities"
    else:
        message = "each machine has a user, a root, a network and process numbers of its own, and a filter of system calls"
        return Finding(level=Finding.OK, subject="jail", message=message)
    return Finding(level=Finding.NOTE, subject="jail", message=message, remedy=remedy)


def _landlock_finding(setting: str) -> system_pb2.Finding:
    if setting == "off":
        level, message, remedy = Finding.NOTE, "machines open what hvd's user may open: the setting jail is off", "set it to auto"
    elif landlock.version():
        level, remedy = Finding.OK, ""
        message = f"machines open no files but their own and hvd's code (version {landlock.version()} of the kernel's interface)"
    else:
        level, remedy = Finding.NOTE, "a kernel of 5.13 or later with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= list"
        message = "this kernel has no Landlock: the other walls are all that keep machines from the host's files"
    return Finding(level=level, subject="landlock", message=message, remedy=remedy)


def _group_finding(settings: config.Config) -> system_pb2.Finding:
    problem = "the setting jail is off" if settings.jail == "off" else group.problem()
    if problem:
        return Finding(
            level=Finding.NOTE,
            subject="control groups",
            message=f"nothing but the host limits the memory of machines' own processes: {problem}",
            remedy="run hvd as root, with jail=auto, where control groups are mounted and can be written",
        )
    message = "each machine's processes have a limit of memory, and of their number"
    if not group.limits(0, 0, settings.state_dir).memory_bytes:
        message = f"each machine's processes have a limit of their number, none of memory: {settings.state_dir} lies in the host's memory"
    return Finding(level=Finding.OK, subject="control groups", message=message)


def _network_finding(subject: str, check: Callable[[], None]) -> system_pb2.Finding:
    try:
        check()
    except HvdError as error:
        return Finding(level=Finding.NOTE, subject=subject, message=error.message, remedy=error.help)
    return Finding(level=Finding.OK, subject=subject, message="guests can be plugged in here")


def _backend_finding(backend: Backend, probe: Probe) -> system_pb2.Finding:
    availability = probe.availability
    return Finding(
        level=Finding.OK if availability.available else Finding.NOTE,
        subject=f"backend {backend.name}",
        message=backend.description if availability.available else availability.reason,
        remedy=availability.remedy,
    )


def _remarks(backend: Backend) -> list[Finding]:
    """What it could do elsewhere, or better."""
    found = [f"no {capability}: {problem}" for capability, problem in backend.limitations.items()]
    messages = (*found, *backend.remarks)
    return [Finding(level=Finding.NOTE, subject=f"backend {backend.name}", message=message) for message in messages]


def _backend(backend: Backend, probe: Probe) -> system_pb2.Backend:
    return system_pb2.Backend(
        name=f"backends/{backend.name}",
        kind=backend.kind,
        available=probe.availability.available,
        reason=probe.availability.reason,
        remedy=probe.availability.remedy,
        capabilities=sorted(backend.capabilities),
        engines=[
            system_pb2.Engine(
                name=engine.name,
                available=engine.availability.available,
                reason=engine.availability.reason,
                description=engine.description,
            )
            for engine in probe.engines
        ],
        description=backend.description,
    )

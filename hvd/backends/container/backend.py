"""The container backend as the daemon sees it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hvd.backends.container import bundle, conmon, mounts, rootfs, rotation, runtime
from hvd.backends.container.cgroup.limits import check
from hvd.backends.container.cgroup.update import count_disk
from hvd.backends.container.cgroup.usage import usage
from hvd.backends.container.ending import abandon, settle
from hvd.backends.container.files.copying import ContainerFiles
from hvd.backends.container.files.enter import Stopped
from hvd.backends.container.instance import CAPABILITIES, ContainerInstance
from hvd.backends.container.record import CONTAINER, Record
from hvd.backends.container.runtime import RUNTIMES, Runtime
from hvd.backends.container.trace.choice import choose
from hvd.backends.container.trace.points import POINTS
from hvd.backends.container.trace.recorder import RECORDER
from hvd.backends.container_spec import ContainerSpec, LimitsSpec, MountSpec
from hvd.backends.contract import Availability, Backend, Capability, EngineInfo, Files, Instance, LaunchSpec
from hvd.backends.usage import Usage
from hvd.cgroup.hierarchy import PARENT, hierarchy
from hvd.config import Config
from hvd.errors import HvdError
from hvd.runner import directory as names
from hvd.trace.points import BackendId

# Runtimes keep a folder for each container below this folder of the daemon's guests.
STATE = ".runtime"
REMEDY = "apt-get install runc conmon"


@functools.cache
def _mapping() -> int:
    """Of id-mapped mounts, for as long as the daemon lives. Raises OSError, subprocess.SubprocessError."""
    return rootfs.user_namespace()


def _mounted(container: ContainerSpec, mapping: int | None) -> tuple[Path, tuple[MountSpec, ...]]:
    """Its root, and its mounts as the runtime gets them. Raises HvdError CONTAINER_FAILED, MOUNT_FAILED, DISK_FULL, PATH_CLOSED."""
    return rootfs.mount(container.layers, container.state_dir, mapping), mounts.prepare(container, mapping)


def _created(container: ContainerSpec, uid: str) -> None:
    count_disk(hierarchy(), uid, container.limits, container.state_dir)
    mounts.release(container.state_dir)  # it has them in its own namespace now


class ContainerBackend(Backend):
    name = "container"
    id = BackendId.CONTAINER
    kind = "container-based"
    description = (
        "processes of the host's kernel in namespaces and cgroups, by an OCI runtime: fast, light, one kernel for all"
    )
    own_trace_points = POINTS
    preference = 50
    console_streams = frozenset({"stdout", "stderr"})

    def __init__(self) -> None:
        self._choose_tracer("auto")

    def configure(self, config: Config) -> None:
        self._choose_tracer(config.container_tracer)

    def _choose_tracer(self, setting: str) -> None:
        choice = choose(setting)
        RECORDER.use(choice.ways)
        self.capabilities = CAPABILITIES if choice.reason else CAPABILITIES | {Capability.TRACE}
        self.limitations = {Capability.TRACE: choice.reason} if choice.reason else {}
        self.remarks = [choice.remark] if choice.remark else []

    def probe(self) -> Availability:
        if os.geteuid() != 0:
            return Availability(False, "containers need root: mounts, namespaces and cgroups", "run hvd as root")
        if not any(engine.availability.available for engine in self.engines()):
            return Availability(False, f"there is no OCI runtime ({' or '.join(RUNTIMES)})", REMEDY)
        if conmon.find() is None:
            return Availability(False, "conmon is not installed", REMEDY)
        if "overlay" not in Path("/proc/filesystems").read_text("ascii"):
            return Availability(False, "the kernel has no overlay file system", "load the module overlay")
        try:
            _mapping()
        except (OSError, subprocess.SubprocessError) as error:
            return Availability(False, f"user namespaces: {error}", "allow them (sysctl user.max_user_namespaces)")
        return Availability(True)

    def engines(self) -> Sequence[EngineInfo]:
        return runtime.engines()

    def check(self, spec: LaunchSpec) -> None:
        if spec.container is None:
            raise HvdError(
                "FIELD_INVALID",
                field="backend",
                value=self.name,
                problem="it runs root file systems, not kernels",
                remedy="give an --image of kind rootfs",
            )
        self.check_limits(spec.container.limits)

    def check_limits(self, limits: LimitsSpec) -> None:
        check(limits, hierarchy())

    def usage(self, directory: Path) -> Usage | None:
        record = Record.read(directory)
        return None if record is None else usage(record.uid, record.init)

    def stopped_files(self, spec: LaunchSpec) -> Files:
        assert spec.container is not None
        container = spec.container
        mapping = None if container.security.host_user_namespace else _mapping()
        stopped = Stopped(container.layers, container.state_dir, container.mounts, container.read_only_root, mapping)
        return ContainerFiles({"stopped": stopped.document()}, (mapping,) if mapping is not None else ())

    async def launch(self, spec: LaunchSpec, directory: Path) -> Instance:
        assert spec.container is not None
        container, engine = spec.container, Runtime(spec.engine, directory.parent / STATE)
        mapping = None if container.security.host_user_namespace else _mapping()
        await engine.delete(spec.uid)  # what of its last run could not be taken down
        record = Record(
            spec.uid, engine.name, str(container.state_dir), container.stop_signal, container.tty, 0, 0,
            stdin_ends=container.stdin_ends, log_files=spec.log_files, held=spec.start_paused,
        )  # fmt: skip
        try:
            # Should the daemon end before it is there, the next one knows what it has to take down.
            record.write(directory)
            root, prepared = await asyncio.to_thread(_mounted, container, mapping)
            container = replace(container, mounts=prepared)
            config = bundle.config(container, spec.uid, root, f"/{PARENT}/{spec.uid}")
            (directory / "config.json").write_text(json.dumps(config), "utf-8")
            rotation.before_start(directory, spec.log_max_bytes, spec.log_files)
            made = await conmon.create(
                directory, spec.uid, spec.name, engine,
                tty=container.tty, stdin=container.stdin, stdin_ends=container.stdin_ends,
                log_file_bytes=names.log_file_bytes(spec.log_max_bytes, spec.log_files),
            )  # fmt: skip
            record = replace(record, init=made.init, monitor=made.monitor)
            record.write(directory)
            names.write_json(str(directory / names.PID), names.process_identity(made.monitor))
            await asyncio.to_thread(_created, container, spec.uid)
            if container.plug is not None:
                await container.plug(made.init)
            instance = ContainerInstance(directory, record, engine, "PAUSED")
        except BaseException as error:
            await abandon(directory, spec.uid, container.state_dir, engine)
            (directory / CONTAINER).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise HvdError("CONTAINER_FAILED", what="its bundle", problem=error) from error
            raise
        with contextlib.suppress(HvdError):  # whoever listens is told when the guest is there (TraceSwitch.begin)
            await instance.trace(spec.traced)
        if not spec.start_paused:
            try:
                await instance.begin()
            except BaseException:
                await instance.kill()
                await instance.close()
                raise
        return instance

    async def adopt(self, directory: Path) -> Instance:
        record = Record.read(directory)
        if record is None:
            raise HvdError("RUNNER_GONE", problem="its directory has no container.json")
        engine = Runtime(record.engine, directory.parent / STATE)
        state = await engine.status(record.uid)
        if state == "created" and not record.held:
            await _call_off(directory, record, engine)
            raise HvdError("RUNNER_GONE", problem=names.START_INTERRUPTED)
        instance = ContainerInstance(
            directory, record, engine, "PAUSED" if state in ("paused", "created") else "RUNNING"
        )
        if state == "paused":
            instance.adopt_paused()
        return instance

    async def settle(self, directory: Path) -> None:
        record = Record.read(directory)
        if record is None or (directory / names.EXIT).exists():
            return
        if not record.monitor or names.process_start_time(record.monitor) is None:
            await settle(directory, record, Runtime(record.engine, directory.parent / STATE))


async def _call_off(directory: Path, record: Record, engine: Runtime) -> None:
    """The daemon died between its creation and its beginning: it may have no network yet, and whoever asked for it had no answer.
    Raises OSError."""
    await abandon(directory, record.uid, Path(record.state_dir), engine)
    names.ExitRecord(str(directory)).write("START_INTERRUPTED", names.START_INTERRUPTED, None, {})


BACKEND = ContainerBackend()

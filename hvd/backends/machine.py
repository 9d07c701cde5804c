"""What the backends that run virtual machines have in common: the checks of what is asked for, and the runner."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hvd.backends.contract import Backend, Capability, Instance, LaunchSpec
from hvd.board.loaders import identify
from hvd.board.loaders.kernel import Kernel
from hvd.board.memory import LOW_RAM_END, check_size
from hvd.errors import HvdError
from hvd.runner import ending
from hvd.runner.client import RunnerInstance
from hvd.trace.points import BackendId


class MachineBackend(Backend):
    """A backend whose guests are run by hvd.runner, with the vcpu that its vcpu.py creates. One virtual CPU."""

    def check(self, spec: LaunchSpec) -> None:
        if spec.container is not None:
            raise HvdError("CAPABILITY_MISSING", backend=self.name, capability=Capability.CONTAINER.value)
        if spec.cpus > 1:
            raise HvdError(
                "FIELD_INVALID",
                field="machine.cpus",
                value=spec.cpus,
                problem=f"{self.name} has one virtual CPU",
                remedy="use --cpus 1",
            )
        needed = {Capability.DISK: spec.disks, Capability.NETWORK: spec.network_interfaces}
        if missing := [
            capability for capability, wanted in needed.items() if wanted and capability not in self.capabilities
        ]:
            raise HvdError("CAPABILITY_MISSING", backend=self.name, capability=missing[0].value)
        check_size(spec.memory_bytes)
        if spec.boot != "kernel":
            if Capability.FIRMWARE not in self.capabilities:
                raise HvdError("CAPABILITY_MISSING", backend=self.name, capability=Capability.FIRMWARE.value)
            self.check_firmware(spec)
            return
        if spec.kernel is None:
            raise HvdError("KERNEL_MISSING")
        kernel = identify(spec.kernel, spec.flat_load_address)
        initrd_bytes = spec.initrd.stat().st_size if spec.initrd is not None else 0
        kernel.check_fits(min(spec.memory_bytes, LOW_RAM_END), initrd_bytes)
        if kernel.paravirt is not None and kernel.paravirt.finished and self.id is not BackendId.PARAVIRT:
            raise HvdError(
                "BACKEND_UNAVAILABLE", backend=self.name, problem="this kernel was finished by hvpvcc, for the backend paravirt alone",
                remedy="use paravirt, or the neutral kernel",
            )  # fmt: skip
        self.check_kernel(spec, kernel)

    def check_kernel(self, spec: LaunchSpec, kernel: Kernel) -> None:
        """Raises HvdError when this way of executing can not run a kernel that is all right in itself."""

    def check_firmware(self, spec: LaunchSpec) -> None:
        """Raises HvdError when this way of executing can not boot this guest from its disk or CD-ROM."""

    async def launch(self, spec: LaunchSpec, directory: Path) -> Instance:
        return await RunnerInstance.launch(directory, spec, self.name, self.capabilities)

    async def adopt(self, directory: Path) -> Instance:
        return await RunnerInstance.adopt(directory, self.name, self.capabilities)

    async def settle(self, directory: Path) -> None:
        await asyncio.to_thread(ending.settle, directory)

"""The machine that the figures are of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess


def cpu_model() -> str:
    """As /proc/cpuinfo names it."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def qemu_version() -> str:
    """Of qemu-system-x86_64, or that there is none."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        return "no QEMU"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    return said.splitlines()[0].replace("emulator version", "").replace("  ", " ")


def description() -> dict[str, str | int | float]:
    """For JSON."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "unicorn": importlib.metadata.version("unicorn"),
        "grpcio": importlib.metadata.version("grpcio"),
        "qemu": qemu_version(),
    }


def line() -> str:
    """For people. The load is the last minute's: with more than about 0.3 on two cores, repeat on an idle machine."""
    facts = description()
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {int(facts['memory_bytes']) >> 20} MiB, load {facts['load']}; "
        f"Linux {facts['kernel']}, Python {facts['python']}, Unicorn {facts['unicorn']}, grpcio {facts['grpcio']}, {facts['qemu']}"
    )

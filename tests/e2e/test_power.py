"""Debian's stock kernels with their default command line: APIC and IOAPIC in use, `poweroff`, `reboot`, and what `hvctl stop` does
to a guest that hears the power button, to one that hears it and goes on, and to one that cannot hear it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import pytest
from guest_shell import Shell, quiet_shell
from real_daemon import Process, RealDaemon

from tests.guest_images import GuestUnavailable, guest_image

# The kernel makes an input device of the button with the first, programs read it through the second.
BUTTON_MODULES = ("button", "evdev")


def boot(daemon: RealDaemon, name: str, modules: Sequence[str] = (), append: str = "") -> tuple[Process, Shell]:
    try:
        image = guest_image(name, modules)
    except GuestUnavailable as error:
        pytest.skip(str(error))
    process = daemon.spawn("run", "--backend", "emulation", "--name", "a", "--kernel", str(image.kernel),
                           "--initrd", str(image.initrd), "--append", f"console=ttyS0 {append}".strip())  # fmt: skip
    return process, quiet_shell(process)


def ended(daemon: RealDaemon) -> tuple[str, str, int | None]:
    found = daemon.listed()["a"]
    return found["state"], found["reason"], found.get("exit_code")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", ["debian-cloud", *(pytest.param(name, marks=pytest.mark.slow) for name in ("debian-amd64", "debian-686", "debian-686-pae"))]
)
def test_a_stock_kernel_with_its_default_command_line(daemon: RealDaemon, name: str) -> None:
    process, shell = boot(daemon, name)
    interrupts = shell("cat /proc/interrupts")
    assert re.search(r"4:\s+[1-9]\d*\s+IO-APIC\s+4-edge\s+ttyS0", interrupts), interrupts
    assert re.search(r"9:\s+\d+\s+IO-APIC\s+9-fasteoi\s+acpi", interrupts), interrupts
    assert re.search(r"LOC:\s+[1-9]\d*", interrupts), interrupts
    assert not re.search(r"(SPU|ERR|MIS):\s+[1-9]", interrupts), interrupts
    events = shell("cat /sys/devices/system/clockevents/clockevent0/current_device")
    assert events == "lapic-deadline"
    log = shell("dmesg", seconds=240)
    for said in (
        # Not current_clocksource: it may distrust it later, when the host runs something else between two of its readings.
        "Switched to clocksource tsc", "ACPI: Using IOAPIC for interrupt routing", "PCI: Using ACPI for IRQ routing", "ACPI: PM: (supports S0 S5)",
    ):  # fmt: skip
        assert said in log
    assert not re.search(r"ACPI (BIOS )?(Error|Warning)|APIC error|BUG:|WARNING:", log), log
    before = int(shell("grep -o 'LOC: *[0-9]*' /proc/interrupts | grep -o '[0-9]*'"))
    assert before < int(shell("sleep 1; grep -o 'LOC: *[0-9]*' /proc/interrupts | grep -o '[0-9]*'"))
    shell.type("poweroff\n")
    assert process.end() == 0
    assert ended(daemon) == ("STOPPED", "POWEROFF", 0)


@pytest.mark.timeout(300)
def test_reboot(daemon: RealDaemon) -> None:
    process, shell = boot(daemon, "debian-cloud")
    shell.type("reboot\n")
    assert process.end() == 0
    assert ended(daemon) == ("STOPPED", "RESET", 0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("paused", [False, True])
def test_stop_presses_the_power_button(daemon: RealDaemon, paused: bool) -> None:
    process, _ = boot(daemon, "debian-cloud", BUTTON_MODULES)
    if paused:
        daemon.ok("pause", "a")
    daemon.ok("stop", "a", "--timeout", "120", timeout=150)
    assert process.end() == 0
    assert ended(daemon) == ("STOPPED", "POWEROFF", 0)
    assert "hvd-guest: power button" in process.out


@pytest.mark.timeout(300)
def test_a_guest_that_hears_the_button_and_goes_on_is_killed_after_its_grace(daemon: RealDaemon) -> None:
    process, shell = boot(daemon, "debian-cloud", BUTTON_MODULES)
    shell("killall acpid")
    begin = time.monotonic()
    daemon.ok("stop", "a", "--timeout", "3", timeout=60)
    assert time.monotonic() - begin >= 3
    assert process.end() == 137
    assert ended(daemon)[:2] == ("STOPPED", "KILLED")


@pytest.mark.timeout(300)
def test_a_guest_that_cannot_hear_the_button_is_killed_at_once(daemon: RealDaemon) -> None:
    process, _ = boot(daemon, "debian-cloud")  # without the module nobody enables it
    begin = time.monotonic()
    daemon.ok("stop", "a", "--timeout", "100", timeout=90)
    assert time.monotonic() - begin < 90
    assert process.end() == 137
    assert ended(daemon)[:2] == ("STOPPED", "KILLED")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("append", "controller"), [("acpi=off", "IO-APIC"), ("noapic", "XT-PIC"), ("nolapic", "XT-PIC"), ("acpi=off noapic nolapic", "XT-PIC")]
)
def test_kernels_that_are_told_to_leave_something_out(daemon: RealDaemon, append: str, controller: str) -> None:
    """Without ACPI the MP tables say where the IOAPIC is; without it the 8259 pair is as ever."""
    process, shell = boot(daemon, "debian-686", append=append)
    interrupts = shell("cat /proc/interrupts")
    assert re.search(rf"4:\s+[1-9]\d*\s+{controller}", interrupts), interrupts
    assert "MIS:          0" in interrupts or controller == "XT-PIC"
    shell.type("reboot -f\n")
    assert process.end() == 0
    assert ended(daemon)[:2] == ("STOPPED", "RESET")

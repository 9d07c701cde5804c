"""The host is started anew: told as such, and what is to run with the host is started. Only the boot id tells (a table of faults fakes it);
processes of the old boot are gone, and so is the runtime directory, as on a tmpfs."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_table import FaultTable
from real_daemon import RealDaemon, is_process, require_backend, wait_for


@pytest.fixture
def faults(tmp_path: Path) -> FaultTable:
    return FaultTable(tmp_path)


@pytest.fixture
def daemon(faults: FaultTable) -> Iterator[RealDaemon]:
    with RealDaemon(prefix=("env", f"LD_PRELOAD={faults.library}")) as daemon:
        require_backend(daemon)
        yield daemon


@pytest.mark.parametrize("runtime_is_kept", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["tmpfs", "disk"])
def test_a_reboot(daemon: RealDaemon, faults: FaultTable, runtime_is_kept: bool) -> None:
    for name, options in (("plain", ()), ("always", ("--restart", "always")), ("auto", ("--autostart",)), ("off", ("--autostart",))):
        daemon.run("ticker.elf", *options, name=name)
    daemon.ok("kill", "off")
    daemon.run("hello.elf", name="ended")
    daemon.wait("ended")
    daemon.ok("update", "ended", "--autostart")
    daemon.ok("update", "ended", "--no-autostart")
    daemon.restart(signal.SIGKILL)  # which is no reboot: nothing starts
    assert daemon.show("off")["state"] == "STOPPED" and daemon.show("off")["autostart"] is True

    runners = {name: daemon.runner(name) for name in ("plain", "always", "auto")}
    daemon.stop(signal.SIGKILL)
    for pid in runners.values():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_process, runners.values())), "all is off")
    if not runtime_is_kept:
        shutil.rmtree(daemon.runtime_dir)
    faults.boot_id("11111111-2222-3333-4444-555555555555")
    daemon.start()
    wait_for(lambda: all(daemon.show(name)["state"] == "RUNNING" for name in ("always", "auto", "off")), lambda: str(daemon.listed()))
    found = daemon.listed()
    assert (found["plain"]["state"], found["plain"]["reason"]) == ("LOST", "HOST_REBOOTED")
    assert (found["ended"]["state"], found["ended"]["exit_code"]) == ("STOPPED", 0)
    assert found["always"]["restart_count"] == 1
    assert not {found[name]["host_pid"] for name in ("always", "auto", "off")} & {str(pid) for pid in runners.values()}
    daemon.ok("kill", "off")
    daemon.restart()
    assert daemon.show("off")["state"] == "STOPPED"  # once for each start of the host

"""What every container backend promises, on a root of busybox: all runtimes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from container_harness import ContainerBench, command_of, exists, same
from harness import SECONDS

from hvd.backends.container_spec import LimitsSpec, MountSpec, SecuritySpec
from hvd.errors import HvdError


@pytest.mark.parametrize("code", [0, 1, 7, 255])
async def test_the_exit_code_is_the_programs(container_bench: ContainerBench, code: int) -> None:
    status, output = await container_bench.run("sh", "-c", f"echo hello; exit {code}")
    assert (status.state, status.reason, status.exit_code, output) == ("STOPPED", "EXITED", code, "hello\n")


async def test_a_signal_ends_it_with_128_and_its_number(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sleep", "1000")
    os.kill(running.instance.pid, signal.SIGKILL)
    status = await running.end()
    assert (status.reason, status.exit_code, status.metadata) == ("EXITED", 137, {"exit_signal": "SIGKILL"})


async def test_it_is_a_process_of_the_host(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "echo up; exec sleep 1000")
    await running.wrote("up")
    instance = running.instance
    async with asyncio.timeout(SECONDS):
        while command_of(instance.pid) != "sleep":
            await asyncio.sleep(0.02)
    root = Path(str(instance.facts["rootfs_path"]))
    assert (root / "bin" / "busybox").is_file() and same(f"/proc/{instance.pid}/root/bin", root / "bin")
    await instance.kill()
    assert not exists(instance.pid)
    assert (await running.end()).reason == "KILLED"


async def test_output_and_errors_are_apart_in_the_log(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "echo out; echo err >&2")
    await running.end()
    lines = [line.split(b" ", 3)[1:] for line in (running.directory / "console.log").read_bytes().splitlines()]
    assert [b"stdout", b"F", b"out"] in lines and [b"stderr", b"F", b"err"] in lines


async def test_pause_stops_the_processes_and_resume_lets_them_go_on(container_bench: ContainerBench) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i > /srv/count; echo tick; sleep 0.02; done"
    running = await container_bench.start("sh", "-c", script)
    await running.wrote_times("tick", 3)
    count = Path(str(running.instance.facts["rootfs_path"])) / "srv" / "count"
    known = await running.instance.status()
    changed = asyncio.create_task(running.instance.wait_change(known))
    await running.instance.pause()
    assert (await changed).state == "PAUSED"
    await running.instance.pause()
    stood = count.read_text()  # not its log: its monitor, which is not paused, may have yet to read the pipe
    await asyncio.sleep(0.3)
    assert count.read_text() == stood
    await running.instance.resume()
    await running.wrote_times("tick", running.console().count("tick") + 10)
    assert count.read_text() != stood
    await running.instance.pause()
    await running.instance.kill()
    assert (await running.end()).reason == "KILLED"


async def test_stop_is_its_stop_signal(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "trap 'exit 3' INT; echo up; while :; do sleep 0.05; done", stop_signal="SIGINT")
    await running.wrote("up")
    assert await running.instance.request_stop() is True
    assert (await running.end()).exit_code == 3


async def test_started_paused_it_has_not_run(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "echo up", start_paused=True)
    assert (await running.instance.status()).state == "PAUSED"
    assert running.console() == ""
    await running.instance.resume()
    assert (await running.end()).exit_code == 0
    assert running.console() == "up\n"


async def test_what_it_wrote_is_there_in_its_next_run_and_the_layer_is_as_it_was(container_bench: ContainerBench) -> None:
    first = container_bench.spec("x")
    status, _ = await container_bench.run("sh", "-c", "echo kept > /srv/file; rm /bin/wc", uid=first.uid)
    assert status.exit_code == 0
    status, output = await container_bench.run("sh", "-c", "cat /srv/file; ls /bin/wc", uid=first.uid)
    assert status.exit_code == 1 and "kept" in output
    assert (container_bench.root / "bin" / "wc").is_symlink() and not (container_bench.root / "srv" / "file").exists()


async def test_adopted_by_another_daemon(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    await running.wrote("tick")
    await running.instance.close()
    running.instance = await container_bench.backend.adopt(running.directory)
    assert (await running.instance.status()).state == "RUNNING"
    await running.instance.pause()
    await running.instance.close()
    running.instance = await container_bench.backend.adopt(running.directory)
    assert (await running.instance.status()).state == "PAUSED"
    await running.instance.resume()
    await running.instance.kill()
    assert (await running.end()).reason == "KILLED"


async def test_one_that_ended_while_no_daemon_was_there(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "sleep 0.3; exit 9")
    await running.instance.close()
    monitor = int(running.instance.facts["monitor_pid"])
    async with asyncio.timeout(SECONDS):
        while exists(monitor):
            await asyncio.sleep(0.02)
    await container_bench.backend.settle(running.directory)
    record = (running.directory / "exit.json").read_text()
    assert '"exit_code": 9' in record and '"EXITED"' in record


async def test_without_its_monitor_it_is_ended_and_failed(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sleep", "1000")
    os.kill(int(running.instance.facts["monitor_pid"]), signal.SIGKILL)
    status = await running.end()
    assert (status.state, status.reason) == ("FAILED", "MONITOR_GONE")
    assert not exists(running.instance.pid)


@pytest.mark.parametrize(
    ("command", "problem"), [("/no/such", "no such file"), ("/etc/passwd", "permission denied"), ("nothing", "not found")]
)
async def test_a_command_that_cannot_be_run(container_bench: ContainerBench, command: str, problem: str) -> None:
    with pytest.raises(HvdError) as error:
        await container_bench.start(command)
    assert error.value.reason == "CONTAINER_FAILED" and problem in str(error.value).lower()


async def test_its_users(container_bench: ContainerBench) -> None:
    for user, ids in (("www", "uid=33(www) gid=33(www) groups=44(logs)"), ("1234:44", "uid=1234 gid=44(logs)")):
        _, output = await container_bench.run("id", user=user)
        assert output.startswith(ids)
    with pytest.raises(HvdError) as error:
        await container_bench.start("id", user="nobody-here")
    assert (error.value.reason, error.value.metadata["field"]) == ("FIELD_INVALID", "container.user")


async def test_safe_by_default(container_bench: ContainerBench) -> None:
    script = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/uid_map; ls /dev; cat /proc/kcore | wc -c; mount -t tmpfs x /srv"
    status, output = await container_bench.run("sh", "-c", script)
    assert status.exit_code != 0, "mounting is refused"
    lines = dict(line.split(":\t") for line in output.splitlines() if ":\t" in line)
    assert lines["NoNewPrivs"] == "1" and lines["Seccomp"] == "2"
    assert int(lines["CapEff"], 16) & 1 << 21 == 0, "no CAP_SYS_ADMIN"
    assert ["0", "100000", "65536"] in [line.split() for line in output.splitlines()]
    assert "sda" not in output and "kvm" not in output and "\n0\n" in output


async def test_what_is_asked_for_beyond_it(container_bench: ContainerBench) -> None:
    security = SecuritySpec(capabilities_add=("NET_ADMIN",), capabilities_drop=("CAP_CHOWN",), new_privileges=True)
    _, output = await container_bench.run("sh", "-c", "grep -E 'CapEff|NoNewPrivs' /proc/self/status", security=security)
    effective = int(output.split("CapEff:\t")[1].split()[0], 16)
    assert effective >> 12 & 1 and not effective & 1
    assert "NoNewPrivs:\t0" in output
    with pytest.raises(HvdError) as error:
        await container_bench.start("true", security=SecuritySpec(capabilities_add=("CAP_NOTHING",)))
    assert error.value.metadata["value"] == "CAP_NOTHING"


async def test_a_root_that_cannot_be_written_and_mounts(container_bench: ContainerBench) -> None:
    volume = container_bench.directory / "volume"
    volume.mkdir()
    (volume / "data").write_text("shared")
    mounts = (MountSpec("volume", volume, "/srv", read_only=True), MountSpec("tmpfs", None, "/mnt", size_bytes=1 << 20))
    script = "cat /srv/data; touch /srv/x || echo ro; touch /bin/x || echo ro; dd if=/dev/zero of=/mnt/big bs=64k count=64 2>/dev/null || echo full"
    _, output = await container_bench.run("sh", "-c", script, mounts=mounts, read_only_root=True)
    assert output == "sharedro\nro\nfull\n"


async def test_limits(container_bench: ContainerBench) -> None:
    limits = LimitsSpec(memory_bytes=16 << 20)
    status, _ = await container_bench.run("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60", limits=limits)
    assert (status.reason, status.exit_code) == ("OUT_OF_MEMORY", 137)
    assert status.metadata and status.metadata["oom_killed"] == "true"
    script = "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; echo never"
    status, output = await container_bench.run("sh", "-c", script, limits=LimitsSpec(pids=8))
    assert status.exit_code != 0 and "never" not in output


async def test_a_fork_bomb_stays_inside(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "echo up; b() { b | b & b; }; b", limits=LimitsSpec(pids=20, memory_bytes=32 << 20))
    await running.wrote("up")
    status, output = await container_bench.run("echo", "the neighbour is well")
    assert (status.exit_code, output) == (0, "the neighbour is well\n")
    await running.instance.kill()
    await running.end()


async def test_its_console(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "echo up; while read line; do echo got $line; done", stdin=True)
    await running.wrote("up")
    async with running.instance.attach_console(read_only=False) as console:
        await console.write(b"word\n")
        async with asyncio.timeout(SECONDS):
            async for piece in console.output():
                if isinstance(piece, bytes) and b"got word" in piece:
                    break
    await running.wrote("got word")


async def test_its_terminal_and_its_size(container_bench: ContainerBench) -> None:
    running = await container_bench.start("sh", "-c", "ls -l /proc/self/fd/0; read x; echo $x", tty=True, stdin=True)
    await running.wrote("/dev/pts/")
    await running.instance.resize_console(33, 77)
    async with running.instance.attach_console(read_only=False) as console:
        await console.write(b"typed\r")
        assert (await running.end()).exit_code == 0
    assert "typed" in running.console()

"""The hole in x86 as users see it: `hvctl census`, the warning of `hvctl run`, the guest's condition and its events."""

from __future__ import annotations

import itertools
import json

import pytest
from google.protobuf import duration_pb2
from hvctl.sdk import Client, HvctlError
from real_daemon import RealDaemon, kernel, wait_for

from hvd.backends.rewriting.backend import BACKEND as REWRITING_BACKEND
from hvd.backends.trap.backend import BACKEND
from tests.guest_images import GuestUnavailable, guest_image

AVAILABILITY, REWRITES = BACKEND.probe(), REWRITING_BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")
TRAP = ("--backend", "trap")
REWRITING = ("--backend", "rewriting")
NEEDS_REWRITING = pytest.mark.skipif(not REWRITES.available, reason=f"{REWRITES.reason}; {REWRITES.remedy}")


def test_a_kernel_with_the_hole(daemon: RealDaemon) -> None:
    done = daemon.hvctl("run", *TRAP, "--name", "hole", "--kernel", kernel("hole.elf"))
    assert done.returncode == 12
    assert "warning: the kernel has 2 sensitive instructions that cannot trap; hvctl census hole" in done.stderr
    assert "off, PUSHF says on; POPF switched them not on\nHOLE open\n" in done.stdout.replace("\r", "")
    assert "warning" not in done.stdout and "census" not in done.stdout + daemon.ok("logs", "hole").stdout

    (condition,) = daemon.show("hole")["conditions"]
    assert (condition["type"], condition["reason"]) == ("SENSITIVE_INSTRUCTIONS", "CANNOT_TRAP")
    assert condition["message"] == "the kernel has 2 sensitive instructions that cannot trap; hvctl census hole"

    table = daemon.ok("census", "hole")
    lines = table.stdout.splitlines()
    assert len(lines) == 3
    assert "interrupts_save" in lines[1] and "pushfd" in lines[1] and " 9c " in lines[1] and "shows the host's interrupt flag" in lines[1]
    assert "interrupts_restore+0x" in lines[2] and "popfd" in lines[2] and "interrupts are switched neither on nor off" in lines[2]
    assert "as the guest was when it ended" in table.stderr
    found = daemon.ok("census", "hole", "-o", "json").json
    assert found["ended"] and not found["incomplete"] and int(found["decoded_instructions"]) > 500
    first, second = found["instructions"]
    assert (first["name"], first["code"], second["name"], second["code"]) == ("pushf", "nA==", "popf", "nQ==")
    assert int(first["address"]) < int(second["address"]) and "hits" not in first


ASKED_IN_VAIN = "the kernel sets CR0.TS or CR0.EM, which stops its programs' x87 and SSE instructions here, but not its own"


@pytest.mark.parametrize(
    ("backend", "guest"), [("trap", "hole.elf"), pytest.param("rewriting", "hole.elf", marks=NEEDS_REWRITING), ("paravirt", "hole.pv.elf")]
)
def test_what_a_kernel_asks_for_in_vain(daemon: RealDaemon, backend: str, guest: str) -> None:
    """What control registers do not do to native code is said; what they and the breakpoint registers do needs no words."""
    for name, options in (("one", ["ts=1"]), ("all", ["ts=1", "tsd=1", "dr7=1"]), ("others", ["tsd=1", "dr7=1"])):
        done = daemon.hvctl("run", "--backend", backend, "--name", name, "--kernel", kernel(guest), "--append", " ".join(options))
        assert done.returncode == (12 if backend == "trap" else 0)
        conditions = {condition["type"]: condition for condition in daemon.show(name).get("conditions", [])}
        assert ("SENSITIVE_INSTRUCTIONS" in conditions) == (backend != "rewriting")  # paravirt: in what it does where the ABI is absent
        in_vain = backend != "rewriting" and "ts=1" in options
        assert (ASKED_IN_VAIN in done.stderr) == in_vain and "stop" not in done.stdout
        assert ("NEGLECTED" in conditions) == in_vain
        if in_vain:
            assert conditions["NEGLECTED"]["reason"] == "CANNOT_BE_DONE"
            assert conditions["NEGLECTED"]["message"] == f"{ASKED_IN_VAIN}; use emulation"


def test_a_clean_kernel_warns_of_nothing(daemon: RealDaemon) -> None:
    done = daemon.hvctl("run", *TRAP, "--name", "clean", "--kernel", kernel("interrupts.elf"))
    assert done.returncode == 0 and "warning" not in done.stderr
    assert daemon.show("clean").get("conditions", []) == []
    assert "0 sensitive instructions" in daemon.ok("census", "clean").stderr


def test_a_guest_that_runs(daemon: RealDaemon) -> None:
    """The condition and its event come while it runs; the census is of this moment."""
    other = daemon.run("spin.elf")
    events = daemon.spawn("events", "-o", "jsonl")
    try:
        number = itertools.count()  # until it listens
        wait_for(lambda: daemon.ok("update", other, "--label", f"n={next(number)}") and other in events.out, "the first event")
        name = daemon.run("teach.elf", *TRAP)
        wait_for(lambda: daemon.show(name)["conditions"], "a condition")
        assert "warning: the kernel has" in events.wait_out("cannot trap")
    finally:
        events.close()
    found = daemon.ok("census", name, "-o", "json").json
    assert not found["ended"]
    assert {entry["symbol"].partition("+")[0] for entry in found["instructions"]} >= {"put_char", "print"}
    wrong = daemon.hvctl("census", name, "--step", "61")
    assert wrong.returncode == 2


def test_executions_are_counted_while_the_guest_goes_on(daemon: RealDaemon) -> None:
    name = daemon.run("teach.elf", *TRAP)
    wait_for(lambda: "teach>" in daemon.ok("screen", name).stdout, "the shell")
    counting = daemon.spawn("census", name, "--step", "6", "-o", "json")
    while counting.popen.poll() is None:  # somewhere within its seconds
        daemon.ok("type", name, "help", "--key", "enter")
    assert counting.end() == 0, counting.err
    counted = json.loads(counting.out)
    hits = {entry["symbol"].partition("+")[0]: int(entry["hits"]) for entry in counted["instructions"]}
    assert hits["put_char"] > 10 and hits["task_start"] == 0
    assert daemon.show(name)["state"] == "RUNNING"


def test_bad_requests(daemon: RealDaemon, client: Client) -> None:
    name = daemon.run("ticker.elf", *TRAP)
    for seconds in (-1, 61):
        with pytest.raises(HvctlError) as error:
            client.get_census(name=f"guests/{name}", count=duration_pb2.Duration(seconds=seconds))
        assert error.value.reason == "FIELD_INVALID"
    daemon.ok("create", "--name", "asleep", *TRAP, "--kernel", kernel("ticker.elf"))
    assert daemon.hvctl("census", "asleep").returncode == 4
    assert daemon.hvctl("census", "nobody").returncode == 3
    daemon.ok("pause", name)
    assert "0 sensitive instructions" in daemon.ok("census", name).stderr


def test_other_backends_say_why_they_have_none(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    done = daemon.hvctl("census", name)
    assert done.returncode == 6
    assert "backend emulation (no sensitive instruction of a kernel passes it by) cannot census" in done.stderr


@NEEDS_REWRITING
def test_what_was_rewritten(daemon: RealDaemon) -> None:
    assert daemon.hvctl("run", *REWRITING, "--name", "closed", "--kernel", kernel("hole.elf")).returncode == 0
    assert daemon.show("closed").get("conditions", []) == []
    table = daemon.ok("census", "closed")
    sites, _, summary = table.stdout.partition("\n\n")
    rows = {line.split()[1]: line for line in sites.splitlines()}
    assert "pushfd" in rows["interrupts_save"] and "in-line work" in rows["interrupts_save"] and "ljmp" in rows["load_tables+0xe"]
    assert "popfd" in rows["interrupts_restore+0x7"] and "callout" in rows["load_tables+0xe"]
    assert "chained jump" not in sites and "chained jump" in summary and "lookup" in summary
    assert "instructions were rewritten; translated now: " in table.stderr and "as the guest was when it ended" in table.stderr
    found = daemon.ok("census", "closed", "--jumps", "-o", "json").json
    assert found["ended"] and {site["replacement"] for site in found["rewritten"]} == {"IN_LINE", "CALLOUT", "CHAINED_JUMP", "LOOKUP"}
    assert sum(int(row["sites"]) for row in found["summary"]) == len(found["rewritten"])
    assert not any("hits" in site for site in found["rewritten"])


@NEEDS_REWRITING
@pytest.mark.parametrize("engine", ["translate", "breakpoint"])
def test_rewritten_sites_are_counted(daemon: RealDaemon, engine: str) -> None:
    """The ticker's interrupts return by IRET; while they are counted they go on coming."""
    name = daemon.run("ticker.elf", *REWRITING, "--engine", engine)
    daemon.wait_logs(name, "tick")
    counted, nested = (daemon.spawn("census", name, "--step", seconds, "-o", "json") for seconds in ("1", "0.5"))
    for process in (counted, nested):
        assert process.end() == 0, process.err
    hits = []
    for process in (nested, counted):
        (iret,) = (site for site in json.loads(process.out)["rewritten"] if site["text"] == "iretd")
        hits.append(int(iret["hits"]))
        assert iret["replacement"] == ("CALLOUT" if engine == "translate" else "BREAKPOINT")
    assert all(hits)
    again = daemon.ok("census", name, "-o", "json").json  # it goes on, and counts no more
    assert engine == "breakpoint" or not any("hits" in site for site in again["rewritten"])
    daemon.ok("pause", name)
    assert daemon.ok("census", name).stdout
    daemon.ok("kill", name)
    assert "iretd" in daemon.ok("census", name).stdout


@pytest.mark.slow
def test_an_ordinary_kernel_dies_early_and_the_census_says_of_what(daemon: RealDaemon) -> None:
    """CPUID shows Linux the host's processor, and it uses what it is told of."""
    try:
        image = guest_image("debian-686")
    except GuestUnavailable as problem:
        pytest.skip(str(problem))
    daemon.ok("run", "-d", *TRAP, "--name", "linux", "--memory", "256M", "--kernel", str(image.kernel),
              "--append", "console=ttyS0 earlyprintk=serial panic=-1")  # fmt: skip
    daemon.wait_logs("linux", "PANIC: early exception")
    wait_for(lambda: daemon.show("linux")["conditions"], "a condition")
    found = daemon.ok("census", "linux", "-o", "json", timeout=120).json
    names = {entry["name"] for entry in found["instructions"]}
    assert {"cpuid", "pushf", "popf", "rdtsc", "mov from segment"} <= names
    assert len(found["instructions"]) > 100

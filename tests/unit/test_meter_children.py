"""CPU time of a guest whose code runs in a child of its runner's."""

from __future__ import annotations

import subprocess
import sys
import time

from hvd.metrics.meter import _children, _Life, _process_times, _stat

PROGRAM = """
import subprocess, sys, threading
def make():
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    print("made", flush=True)
    child.wait()
threading.Thread(target=make, daemon=True).start()
sys.stdin.read()
"""


def test_the_child_of_a_thread_counts() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdin is not None
    parent.stdout.readline()
    (child,) = _children(parent.pid)
    try:
        own = _stat(parent.pid)
        assert own is not None
        life = _Life(parent.pid, own[22])
        until = time.monotonic() + 60
        while time.monotonic() < until:
            times, own = _process_times(life), _stat(parent.pid)
            assert times is not None and own is not None
            if times.user > 0.2 + own[14] / 100:
                break
            time.sleep(0.05)
        else:
            raise AssertionError(times)
        assert _process_times(_Life(parent.pid, life.start_time + 1)) is None
    finally:
        subprocess.run(["kill", str(child)], check=True)
        parent.stdin.close()
        parent.wait()

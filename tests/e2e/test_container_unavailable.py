"""Where containers cannot run: the backend says so, why, and what helps; the others go on."""

from __future__ import annotations

import json
import os

import pytest
from real_daemon import RealDaemon, kernel

WHERE = {
    # No user and no capability of the host's within a namespace that maps none.
    "not root": (("unshare", "--user"), "need root", "run hvd as root"),
    "nothing on PATH": (("/usr/bin/env", "PATH="), "no OCI runtime (runc or crun)", "apt-get install runc conmon"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="the point is what root lacks")
@pytest.mark.parametrize("case", WHERE)
def test_the_backend_says_why_and_what_helps(case: str) -> None:
    prefix, reason, remedy = WHERE[case]
    with RealDaemon(prefix=prefix) as daemon:
        found = {each["name"]: each for each in daemon.ok("backends", "-o", "json").json["backends"]}["backends/container"]
        assert not found.get("available") and reason in found["reason"] and found["remedy"] == remedy, found
        table = daemon.ok("backends").stdout
        assert "container" in table and remedy in table
        refused = daemon.hvctl("create", "--backend", "container", "--image", "none", "-o", "json", "--", "true")
        error = json.loads(refused.stderr[refused.stderr.index("{") :])["error"]
        assert refused.returncode and error["reason"] in ("BACKEND_UNAVAILABLE", "IMAGE_NOT_FOUND")
        done = daemon.hvctl("run", "--rm", "--backend", "emulation", "--memory", "8M", "--kernel", kernel("hello.elf"))
        assert done.returncode == 0, done.stderr

"""Volumes that are listed and deleted; clones of containers that have stopped and that run."""

from __future__ import annotations

import json
from pathlib import Path

from real_daemon import RealDaemon
from test_containers import box, root  # noqa: F401  fixtures


def volumes(daemon: RealDaemon) -> dict[str, list[str]]:
    found = daemon.ok("volume", "list", "-o", "json").json["volumes"]
    return {volume["name"]: volume.get("used_by", []) for volume in found}


def reason(daemon: RealDaemon, *words: str) -> str:
    refused = daemon.hvctl(*words, "-o", "json")
    assert refused.returncode not in (0, 2), refused
    return str(json.loads(refused.stderr)["error"]["reason"])


def test_a_volume_from_its_first_use_to_its_end(box: RealDaemon) -> None:  # noqa: F811
    box.ok("volume", "create", "empty")
    assert reason(box, "volume", "create", "empty") == "NAME_TAKEN"
    box.ok("run", "--name", "a", "--image", "box", "-v", "data:/data", "-v", "data:/again", "--", "sh", "-c", "echo kept > /data/file")
    box.ok("create", "--name", "b", "--image", "box", "-v", "data:/data:ro", "-v", "coming:/c", "--", "cat", "/data/file")
    assert volumes(box) == {"volumes/data": ["guests/a", "guests/b"], "volumes/empty": []}
    refused = box.hvctl("volume", "delete", "data")
    assert refused.returncode and "used by guests/a, guests/b" in refused.stderr
    box.ok("delete", "a")
    box.ok("start", "b")
    box.wait("b")
    assert box.ok("logs", "b").stdout == "kept\n"
    shown = box.ok("volume", "show", "data", "-o", "json").json
    assert shown["used_by"] == ["guests/b"] and int(shown["stored_bytes"]) > 0
    assert (Path(shown["path"]) / "file").read_text() == "kept\n"
    box.ok("delete", "b")
    assert set(volumes(box)) == {"volumes/coming", "volumes/data", "volumes/empty"}
    assert box.ok("volume", "delete", "coming", "data", "empty").stdout == "coming\ndata\nempty\n"
    assert volumes(box) == {} and not Path(shown["path"]).exists()
    assert list((box.state_dir / "volumes").iterdir()) == []
    assert reason(box, "volume", "delete", "data") == "VOLUME_NOT_FOUND"
    assert box.ok("volume", "delete", "data", "--allow-missing")
    assert reason(box, "volume", "delete", "../../blobs") == "FIELD_INVALID"


def test_clones_of_a_stopped_and_of_a_running_container(box: RealDaemon) -> None:  # noqa: F811
    script = "mkdir -m 700 /srv/d; echo one > /srv/d/f; ln -s /nowhere /srv/l; rm /etc/group; echo up; "
    script += "i=0; while :; do i=$((i+1)); echo $i > /srv/n; done"
    box.ok("run", "-d", "--name", "a", "--image", "box", "--env", "X=1", "--memory", "32M", "--", "sh", "-c", script)
    box.wait_logs("a", "up")
    box.ok("clone", "a", "running")
    assert box.show("a")["state"] == "RUNNING"
    box.ok("pause", "a")
    box.ok("clone", "a", "paused")
    assert box.show("a")["state"] == "PAUSED"
    box.ok("kill", "a")
    box.ok("clone", "a", "stopped")
    box.ok("delete", "a")  # nothing of it is needed any more
    for name in ("running", "paused", "stopped"):
        guest = box.show(name)
        assert (guest["state"], guest["limits"]["memory_bytes"], guest["container"]["env"]) == ("STOPPED", str(32 << 20), {"X": "1"})
        box.ok("start", name)  # makes /srv/d once more, which is there
        box.wait_logs(name, "up")
        look = "cat /srv/d/f; stat -c %a:%u /srv/d; stat -c %N /srv/l; ls /etc/group 2>&1"
        found = box.hvctl("exec", name, "--", "sh", "-c", look).stdout
        assert found.startswith("one\n700:0\n") and "/nowhere" in found and "No such file" in found
    assert reason(box, "clone", "running", "paused") == "NAME_TAKEN"

"""Containers' networks, published ports and volumes through the real daemon, in a network namespace of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_harness import APPLETS, busybox_root
from guest_shell import Shell
from real_daemon import RealDaemon, is_process, wait_for

from hvd.backends.container.backend import BACKEND
from hvd.cgroup.hierarchy import hierarchy
from hvd.network.links import tap_name
from tests.guest_images import GuestUnavailable, guest_image
from tests.network_namespace import Namespace, NamespaceUnavailable

MORE = ("ip", "ping", "nc", "wget", "httpd", "route", "ifconfig", "cp", "df")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = busybox_root(tmp_path_factory.mktemp("busybox") / "root")
    for applet in set(MORE) - set(APPLETS):
        (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    try:
        with Namespace("nft") as namespace:
            yield namespace
    except NamespaceUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that containers may be given."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "from-host").write_text("host\n")
    return folder


@pytest.fixture
def box(namespace: Namespace, root: Path, shared: Path) -> Iterator[RealDaemon]:
    """A daemon with the image "box" in the namespace; nothing is left of its guests: interfaces, rules, mounts, groups."""
    availability = BACKEND.probe()
    if not availability.available:
        reason = f"container: {availability.reason}; {availability.remedy}"
        if "container" in os.environ.get("HVD_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    # Not `ip netns exec`, which mounts another /sys, without control groups.
    prefix = ("nsenter", f"--net=/run/netns/{namespace.name}")
    with RealDaemon("--image-dirs", str(shared), prefix=prefix) as daemon:
        daemon.ok("image", "import", "box", str(root))
        yield daemon
        uids = [guest["uid"] for guest in daemon.listed().values()]
        daemon.clear()
        for name in daemon.ok("network", "list", "-o", "name").stdout.split():
            daemon.ok("network", "delete", name)
        mounts = Path("/proc/self/mountinfo").read_text()
        assert not [uid for uid in uids if uid in mounts]
        groups = hierarchy()
        assert not [path for uid in uids for path in groups.directories(uid) if path.exists()]
    namespace.check_clean()


def address_of(box: RealDaemon, network: str, guest: str) -> str:
    shown = box.ok("network", "show", network, "-o", "json").json
    return str(next(each["ip_address"] for each in shown["attachments"] if each["guest"] == f"guests/{guest}"))


def reason_of(box: RealDaemon, *words: str) -> str:
    refused = box.hvctl("run", "-o", "json", *words)
    assert refused.returncode == 125, refused
    return str(json.loads(refused.stderr[refused.stderr.index("{") :])["error"]["reason"])


def test_containers_on_a_network_reach_each_other_and_the_host(namespace: Namespace, box: RealDaemon) -> None:
    box.ok("network", "create", "lan", "--subnet", "10.9.0.0/24", "--mtu", "1400")
    box.ok("run", "-d", "--name", "a", "--image", "box", "--network", "lan", "--", "sh", "-c", "echo up; exec sleep 1000")
    box.wait_logs("a", "up")
    address = address_of(box, "lan", "a")
    assert address == "10.9.0.2"
    done = box.ok("run", "--name", "b", "--image", "box", "--network", "lan,ip=10.9.0.9,mac=52:54:00:12:34:56", "--", "sh", "-c",
                  f"ip addr; ip route; cat /etc/hosts; ping -c 1 {address} && ping -c 1 10.9.0.1 && ping -c 1 localhost && ping -c 1 b")  # fmt: skip
    assert done.stdout.count("1 packets received") == 4
    for text in ("10.9.0.9/24", "52:54:00:12:34:56", "mtu 1400", "default via 10.9.0.1 dev eth0", "10.9.0.9 b", "LOOPBACK,UP"):
        assert text in done.stdout, text
    uid = box.show("a")["uid"]
    assert tap_name(uid, 0) in namespace.links()
    namespace.run("ping", "-c", "1", address)
    # Its root may not change it: that is a capability it does not have.
    assert box.hvctl("exec", "a", "--", "ip", "link", "set", "eth0", "down").returncode
    box.ok("kill", "a")
    wait_for(lambda: tap_name(uid, 0) not in namespace.links(), "the end of its cable")
    box.ok("start", "a")
    box.wait_logs("a", "up")
    namespace.run("ping", "-c", "1", address)


def test_none_and_host(namespace: Namespace, box: RealDaemon) -> None:
    assert box.ok("run", "--rm", "--image", "box", "--network", "none", "--", "ip", "-o", "link").stdout.count("\n") == 1
    seen = box.ok("run", "--rm", "--image", "box", "--network", "host", "--", "ip", "-o", "addr").stdout
    assert "192.0.2.7" in seen
    assert reason_of(box, "--image", "box", "--network", "user", "--", "true") == "FIELD_INVALID"
    assert reason_of(box, "--image", "box", "--network", "missing", "--", "true") == "NETWORK_NOT_FOUND"
    assert reason_of(box, "--image", "box", "--network", "host", "--network", "none", "--", "true") == "FIELD_INVALID"


# Without -f it goes into the background once it listens.
SERVE = "mkdir -p /srv/www; echo hello from $(hostname) >/srv/www/x; busybox httpd -p 80 -h /srv/www; echo up; exec sleep 100000"


def fetch(namespace: Namespace, url: str) -> str:
    """What comes, or why nothing does."""
    code = f"import urllib.request as r; print(r.urlopen('http://{url}/x', timeout=30).read().decode(), end='')"
    done = subprocess.run([*namespace.prefix, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def rules(namespace: Namespace) -> int:
    """How many ports are published."""
    return len(re.findall(r"dnat to", namespace.run("nft", "list", "ruleset")))


def ports_of(box: RealDaemon, guest: str) -> list[int]:
    return [int(port["host_port"]) for port in box.show(guest)["container"]["ports"]]


@pytest.mark.parametrize("closed", [False, True])
def test_published_ports(namespace: Namespace, box: RealDaemon, closed: bool) -> None:
    box.ok("network", "create", "lan", "--subnet", "10.9.0.0/24", *(["--no-nat"] if closed else []))
    words = ("-p", "8080:80", "-p", "0.0.0.0:8081:80", "-p", "80", "-p", "53:53/udp")
    box.ok("run", "-d", "--name", "web", "--image", "box", "--network", "lan", *words, "--", "sh", "-c", SERVE)
    box.wait_logs("web", "up")
    free = ports_of(box, "web")[2]
    assert free > 1023 and rules(namespace) == 5
    for url in ("127.0.0.1:8080", "127.0.0.1:8081", "192.0.2.7:8081", f"127.0.0.1:{free}"):
        assert fetch(namespace, url) == "hello from web\n", url
    assert "hello" not in fetch(namespace, "192.0.2.7:8080")  # of the loopback only
    # From a container, by the host's address, even from itself; what listens on the host's loopback it does not reach.
    script = "wget -q -O - http://10.9.0.1:8081/x; timeout 5 wget -q -O - http://10.9.0.1:8080/x || echo refused"
    inside = box.ok("exec", "web", "--", "sh", "-c", script)
    assert inside.stdout == "hello from web\nrefused\n"
    # What is taken.
    box.ok("run", "-d", "--name", "other", "--image", "box", "--", "sleep", "1000")
    for port in ("8080:80", "127.0.0.1:8081:80", f"{free}:80"):
        assert reason_of(box, "--image", "box", "--network", "lan", "-p", port, "--", "true") == "PORT_TAKEN"
    listener = namespace.start(sys.executable, "-c", "import socket; s = socket.create_server(('', 9000)); print(flush=True); s.accept()")
    assert listener.stdout
    listener.stdout.readline()
    try:
        assert reason_of(box, "--image", "box", "--network", "lan", "-p", "9000:80", "--", "true") == "PORT_TAKEN"
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()
    assert reason_of(box, "--image", "box", "-p", "9000:80", "--", "true") == "FIELD_INVALID"
    assert reason_of(box, "--image", "box", "--network", "lan", "-p", "198.51.100.1:9000:80", "--", "true") == "FIELD_INVALID"
    # Gone with its end, back with its start.
    box.ok("kill", "web")
    wait_for(lambda: rules(namespace) == 0, "the end of the rules")
    assert "hello" not in fetch(namespace, "127.0.0.1:8080")
    box.ok("start", "web")
    assert rules(namespace) == 5 and ports_of(box, "web")[2] == free
    wait_for(lambda: fetch(namespace, "127.0.0.1:8080") == "hello from web\n", "an answer")


def test_without_the_daemon_they_keep_their_network(namespace: Namespace, box: RealDaemon) -> None:
    box.ok("network", "create", "lan")
    for name, port in (("web", "8080:80"), ("short", "8081:80")):
        box.ok("run", "-d", "--name", name, "--image", "box", "--network", "lan", "-p", port, "--", "sh", "-c", SERVE)
        box.wait_logs(name, "up")
    short = box.show("short")
    box.stop(signal.SIGKILL)
    assert fetch(namespace, "127.0.0.1:8080") == "hello from web\n"
    os.kill(int(short["host_pid"]), signal.SIGKILL)
    wait_for(lambda: tap_name(short["uid"], 0) not in namespace.links(), "the end of its cable")
    wait_for(lambda: not is_process(int(short["monitor_pid"])), "the end of its monitor")
    # The bridge vanishes under the one that runs.
    namespace.run("ip", "link", "delete", "hvd-lan")
    box.start()
    wait_for(lambda: rules(namespace) == 1, "only the rule of the one that runs")
    assert fetch(namespace, "127.0.0.1:8080") == "hello from web\n"
    assert reason_of(box, "--image", "box", "--network", "lan", "-p", "8080:80", "--", "true") == "PORT_TAKEN"


def test_volumes_folders_and_memory(box: RealDaemon, shared: Path) -> None:
    words = ("--read-only", "-v", "data:/data", "-v", f"{shared}:/host", "-v", f"{shared}:/look:ro", "--tmpfs", "/scratch:1M")
    script = "; ".join((
        "id -u >/data/file", "cat /host/from-host", "echo boxed >/host/from-box", "echo x 2>/dev/null >/look/x || echo read-only",
        "echo x 2>/dev/null >/x || echo root read-only", "dd if=/dev/zero of=/scratch/big bs=1k count=2000 2>/dev/null || echo full",
        "stat -c %u:%a /data /host/from-host",
    ))  # fmt: skip
    done = box.ok("run", "--rm", "--image", "box", *words, "--", "sh", "-c", script)
    assert done.stdout == "host\nread-only\nroot read-only\nfull\n0:755\n0:644\n"
    assert (shared / "from-box").read_text() == "boxed\n" and (shared / "from-box").stat().st_uid == os.getuid()
    # A volume outlives its guests, and more than one may have it.
    assert box.ok("run", "--rm", "--image", "box", "-v", "data:/d:ro", "--", "cat", "/d/file").stdout == "0\n"
    assert box.ok("run", "--rm", "--image", "box", "-v", f"{shared}/from-host:/etc/one", "--", "cat", "/etc/one").stdout == "host\n"
    assert box.ok("run", "--rm", "--image", "box", "--host-userns", "-v", "data:/d", "--", "cat", "/d/file").stdout == "0\n"
    assert reason_of(box, "--image", "box", "-v", f"{shared}/missing:/d", "--", "true") == "PATH_MISSING"
    assert reason_of(box, "--image", "box", "-v", "/etc:/d", "--", "true") == "PATH_REFUSED"
    (shared / "way-out").symlink_to("/etc")
    assert reason_of(box, "--image", "box", "-v", f"{shared}/way-out:/d", "--", "true") == "PATH_REFUSED"


@pytest.fixture
def outside(namespace: Namespace) -> Iterator[tuple[str, ...]]:
    """What is before a command that is to run on another machine: 203.0.113.2, the namespace being 203.0.113.1."""
    name = f"{namespace.name}-out"
    inside = ("ip", "netns", "exec", name)
    steps = (
        ("ip", "netns", "add", name),
        (*namespace.prefix, "ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1", "netns", name),
        (*namespace.prefix, "ip", "address", "add", "203.0.113.1/24", "dev", "wan0"),
        (*namespace.prefix, "ip", "link", "set", "wan0", "up"),
        (*inside, "ip", "address", "add", "203.0.113.2/24", "dev", "wan1"),
        (*inside, "ip", "link", "set", "wan1", "up"),
        (*inside, "ip", "link", "set", "lo", "up"),
    )
    try:
        for step in steps:
            subprocess.run(step, check=True)
        namespace.before = namespace.state()
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("closed", [False, True])
def test_from_outside_only_what_is_published(namespace: Namespace, outside: tuple[str, ...], box: RealDaemon, closed: bool) -> None:
    box.ok("network", "create", "lan", "--subnet", "10.9.0.0/24", *(["--no-nat"] if closed else []))
    box.ok("network", "create", "lab", "--subnet", "10.8.0.0/24")
    box.ok("run", "-d", "--name", "web", "--image", "box", "--network", "lan", "-p", "0.0.0.0:8081:80", "-p", "8080:80",
           "--", "sh", "-c", SERVE)  # fmt: skip
    box.wait_logs("web", "up")

    def get(url: str, seconds: float = 1) -> str:
        code = f"import urllib.request as r; print(r.urlopen('http://{url}/x', timeout={seconds}).read().decode(), end='')"
        return subprocess.run([*outside, sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout

    assert get("203.0.113.1:8081", 30) == "hello from web\n"
    assert get("203.0.113.1:8080") == ""
    # Not by the container's own address, even of one who knows the way there; nor by the host's loopback.
    subprocess.run([*outside, "ip", "route", "add", "10.9.0.0/24", "via", "203.0.113.1"], check=True)
    assert get("10.9.0.2:80") == ""
    # From another network only what anybody may have; the host's loopback not at all, though route_localnet is on.
    urls = {"203.0.113.1:8081": 30, "10.9.0.2:80": 1, "10.8.0.1:8080": 1}
    script = "exec 2>/dev/null; " + "; ".join(f"timeout {most} wget -q -O - http://{url}/x || echo no" for url, most in urls.items())
    assert box.hvctl("run", "--rm", "--image", "box", "--network", "lab", "--", "sh", "-c", script).stdout == "hello from web\nno\nno\n"
    out = box.hvctl("exec", "web", "--", "ping", "-c", "1", "-W", "1" if closed else "30", "203.0.113.2")
    assert ("1 packets received" in out.stdout) is not closed
    script = "ip route add 127.0.0.9 via 10.9.0.1; timeout 1 wget -q -O - http://127.0.0.9:8080/x || echo no"
    assert "hello" not in box.hvctl("run", "--rm", "--image", "box", "--network", "lan", "--cap-add", "NET_ADMIN", "--", "sh", "-c", script).stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_machine_and_a_container_on_one_network(namespace: Namespace, box: RealDaemon) -> None:
    try:
        image = guest_image("debian-cloud", ("virtio_pci", "virtio_net"))
    except GuestUnavailable as error:
        pytest.skip(str(error))
    box.ok("network", "create", "lan", "--subnet", "10.9.0.0/24")
    box.ok("run", "-d", "--name", "web", "--image", "box", "--network", "lan", "--", "sh", "-c", SERVE)
    machine = box.spawn("run", "--backend", "emulation", "--name", "vm", "--kernel", str(image.kernel), "--initrd",
                        str(image.initrd), "--append", "console=ttyS0", "--network", "lan")  # fmt: skip
    shell = Shell(machine)
    assert "2 packets received" in shell(f"ping -c 2 {address_of(box, 'lan', 'web')}")
    done = box.ok("exec", "web", "--", "ping", "-c", "2", address_of(box, "lan", "vm"))
    assert "2 packets received" in done.stdout


def figures(box: RealDaemon, guest: str) -> dict[str, dict[str, float]]:
    """Of its networks: "transmit_bytes" -> device -> value."""
    found: dict[str, dict[str, float]] = {}
    text = box.ok("metrics", guest).stdout
    for name, labels, value in re.findall(r"^hvd_guest_network_(\w+)_total\{([^}]*)\} (\S+)$", text, re.MULTILINE):
        found.setdefault(name, {})[labels.split('device="')[1].split('"')[0]] = float(value)
    return found


def test_what_goes_over_a_bridge_is_in_the_figures_of_both_ends(box: RealDaemon) -> None:
    box.ok("network", "create", "lan", "--subnet", "10.9.0.0/24")
    size = 3 << 20
    serve = "mkdir -p /srv/www; dd if=/dev/zero of=/srv/www/x bs=1M count=3 2>/dev/null; busybox httpd -p 80 -h /srv/www; echo up; exec sleep 100000"
    box.ok("run", "-d", "--name", "source", "--image", "box", "--network", "lan", "--", "sh", "-c", serve)
    box.wait_logs("source", "up")
    url = f"http://{address_of(box, 'lan', 'source')}/x"
    fetch_it = f"echo up; [ -e /srv/x ] || {{ while ! wget -q -O /srv/x {url}; do :; done; wc -c < /srv/x; }}; exec sleep 1000"
    box.ok("run", "-d", "--name", "sink", "--image", "box", "--network", "lan", "--", "sh", "-c", fetch_it)
    box.ok("run", "-d", "--name", "guest-of-host", "--image", "box", "--network", "host", "--", "sleep", "1000")
    box.wait_logs("sink", str(size))
    source, sink = figures(box, "source"), figures(box, "sink")
    sent, received = source["transmit_bytes"], sink["receive_bytes"]
    assert sent.keys() == received.keys() == {"eth0"}
    # With the headers of Ethernet, IP and TCP, and with what little else is said on a bridge.
    assert size < received["eth0"] < 1.2 * size and size < sent["eth0"] < 1.2 * size
    assert source["transmit_packets"]["eth0"] > 40 and source["transmit_dropped"] == {"eth0": 0}
    assert sink["transmit_bytes"]["eth0"] < size / 4  # acknowledgements
    assert figures(box, "guest-of-host") == {}
    rows = json.loads(box.ok("stats", "--every", "100ms", "--count", "1", "-o", "jsonl").stdout.splitlines()[-1])["stats"]
    row = next(row for row in rows if row["name"].endswith("/sink"))
    assert any(size < int(value) < 1.2 * size for value in _numbers(row)), row
    # Another run counts from zero.
    box.ok("kill", "sink")
    assert figures(box, "sink")["receive_bytes"]["eth0"] >= received["eth0"]
    box.ok("start", "sink")
    assert figures(box, "sink")["receive_bytes"]["eth0"] < size / 4


def _numbers(document: object) -> Iterator[int]:
    if isinstance(document, dict):
        for value in document.values():
            yield from _numbers(value)
    elif isinstance(document, list):
        for value in document:
            yield from _numbers(value)
    elif isinstance(document, str) and document.isdecimal():
        yield int(document)

"""Networks through the real daemon, in a network namespace of their own: bridges, taps and passt behind Debian's stock
kernel with its own virtio_net; what is left behind, which is nothing; what is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_shell import BOOT_SECONDS, Shell, quiet_shell
from real_daemon import Process, RealDaemon, kernel, require_backend, wait_for

from hvd.network.links import tap_name
from tests.guest_images import PROMPT, GuestImage, GuestUnavailable, guest_image, is_built
from tests.network_namespace import UPLINK, Namespace, NamespaceUnavailable

PEER = str(Path(__file__).parents[1] / "network_peer.py")
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def image() -> GuestImage:
    try:
        return guest_image("debian-cloud", ("virtio_pci", "virtio_net"))
    except GuestUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    try:
        with Namespace("nft", "ping") as namespace:
            yield namespace
    except NamespaceUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def daemon(namespace: Namespace) -> Iterator[RealDaemon]:
    """Its own, whose interfaces, rules and processes are gone after the test."""
    with RealDaemon(prefix=namespace.prefix) as daemon:
        require_backend(daemon)
        yield daemon
        daemon.clear()
        for name in daemon.ok("network", "list", "-o", "name").stdout.split():
            daemon.ok("network", "delete", name)
    namespace.check_clean()


def boot(daemon: RealDaemon, image: GuestImage, name: str, *options: str) -> tuple[Process, Shell]:
    process = daemon.spawn("run", "--backend", "emulation", "--name", name, "--kernel", str(image.kernel), "--initrd",
                           str(image.initrd), "--append", "console=ttyS0", *options)  # fmt: skip
    return process, quiet_shell(process)


def attachments(daemon: RealDaemon, network: str) -> dict[str, dict[str, str]]:
    """Guest -> its card."""
    shown = daemon.ok("network", "show", network, "-o", "json").json
    return {each["guest"].removeprefix("guests/"): each for each in shown.get("attachments", [])}


class Peer:
    """network_peer.py in the namespace."""

    def __init__(self, namespace: Namespace, *words: str) -> None:
        self._process = namespace.start(sys.executable, PEER, *words)
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"

    def digest(self) -> str:
        out, _ = self._process.communicate(timeout=60)
        return out.decode().split()[0]


def exchange(namespace: Namespace, shell: Shell, listen: str, address: str, size: int = 2 * MEGABYTE) -> None:
    """TCP, a few megabytes each way, checksummed at both ends."""
    peer = Peer(namespace, "take", listen, "5001")
    sent = shell(f"dd if=/dev/urandom of=/tmp/data bs=64k count={size >> 16} 2>/dev/null; md5sum </tmp/data; nc {address} 5001 </tmp/data")
    assert re.fullmatch(r"[0-9a-f]{32}  -", sent) and sent.split()[0] == peer.digest()
    peer = Peer(namespace, "give", listen, "5002", str(size))
    # stdin stays open: the passt of Debian 12 stalls a connection that is closed in one direction.
    got = shell(f"mkfifo /tmp/hold; sleep 1000 </dev/null >/tmp/hold & nc {address} 5002 </tmp/hold | md5sum; kill $!; rm /tmp/hold")
    assert re.search(r"\b([0-9a-f]{32})  -", got)[1] == peer.digest()  # type: ignore[index]


@pytest.mark.timeout(900)
def test_two_guests_and_the_host_on_a_bridge(namespace: Namespace, daemon: RealDaemon, image: GuestImage) -> None:
    daemon.ok("network", "create", "lan", "--subnet", "10.9.0.0/24")
    processes = {name: daemon.spawn(
        "run", "--backend", "emulation", "--name", name, "--kernel", str(image.kernel), "--initrd", str(image.initrd),
        "--append", "console=ttyS0", "--network", "lan") for name in ("a", "b")}  # fmt: skip
    one, two = (quiet_shell(process) for process in processes.values())
    assert "eth0 has 10.9.0." in one.boot and "eth0 has 10.9.0." in two.boot
    cards = attachments(daemon, "lan")
    assert {card["ip_address"] for card in cards.values()} == {"10.9.0.2", "10.9.0.3"}
    mine, yours = cards["a"]["ip_address"], cards["b"]["ip_address"]
    assert mine in one("ip -4 addr show eth0") and cards["a"]["mac_address"] in one("cat /sys/class/net/eth0/address")
    assert one("hostname") == "a"
    for shell, other in ((one, yours), (two, mine), (one, "10.9.0.1")):
        assert "3 packets received" in shell(f"ping -c 3 {other}")
    exchange(namespace, one, "10.9.0.1", "10.9.0.1")
    # From guest to guest.
    two.type("nc -l -p 7000 -e dd of=/tmp/got bs=64k\n")
    sent = one(f"md5sum </tmp/data; until nc {yours} 7000 </tmp/data 2>/dev/null; do sleep 1; done")
    assert sent.split()[0] in two("md5sum </tmp/got")
    metrics = daemon.ok("metrics", "a").stdout
    for series in ("receive_bytes", "receive_packets", "transmit_bytes", "transmit_packets"):
        (value,) = re.findall(rf'^hvd_guest_network_{series}_total{{device="net0",guest="a"}} (\S+)$', metrics, re.M)
        assert float(value) > 100
    # What is paused receives nothing, and goes on where it was.
    daemon.ok("pause", "b")
    assert "0 packets received" in one(f"ping -c 2 -W 1 {yours}")
    daemon.ok("resume", "b")
    assert "2 packets received" in one(f"ping -c 2 {yours}")
    # A reset is a new start of the driver on the same tap.
    daemon.ok("reset", "b")
    two.boot_again()
    assert yours in two("ip -4 addr show eth0") and "2 packets received" in two(f"ping -c 2 {mine}")
    refused = daemon.hvctl("network", "delete", "lan")
    assert refused.returncode == 4 and "is used by a, b" in refused.stderr


@pytest.mark.timeout(600)
def test_the_daemon_goes_and_comes_back(namespace: Namespace, daemon: RealDaemon, image: GuestImage) -> None:
    """Guests keep their network without it; what vanished is made again; what nobody knows is removed."""
    daemon.ok("network", "create", "lan")
    daemon.ok("network", "create", "lab", "--no-nat")
    _, shell = boot(daemon, image, "a", "--network", "lan", "--network", "none")
    assert shell("cat /sys/class/net/eth1/carrier") == "0" and "LOWER_UP" not in shell("ip link show eth1")
    daemon.stop(signal.SIGKILL)
    alias = next(line for line in namespace.run("ip", "-d", "link", "show", "hvd-lan").splitlines() if "alias" in line).split()[1]
    owner = alias.split(":")[1]
    namespace.run("ip", "link", "delete", "hvd-lab")
    namespace.run("ip", "link", "add", "hvd-stray", "type", "bridge")
    namespace.run("ip", "link", "set", "hvd-stray", "alias", f"hvd:{owner}:some-network-of-before")
    namespace.run("ip", "link", "add", "hvd-other", "type", "bridge")
    namespace.run("ip", "link", "set", "hvd-other", "alias", "hvd:anotherone:some-network")
    namespace.run("nft", "delete", "table", "ip", f"hvd_{owner}")
    assert "64 bytes from" in namespace.run("ping", "-c", "1", "-W", "20", "10.77.0.2")
    namespace.run("ip", "link", "delete", "hvd-lan")
    daemon.start()
    assert {"hvd-lan", "hvd-lab", "hvd-other"} <= set(namespace.links()) and "hvd-stray" not in namespace.links()
    assert "masquerade" in namespace.run("nft", "list", "table", "ip", f"hvd_{owner}")
    assert daemon.listed()["a"]["state"] == "RUNNING"
    viewer = daemon.spawn("console", "a")
    viewer.type("echo back $((40+2))\n")
    viewer.wait_out("back 42")
    viewer.type("ping -c 2 10.77.0.1\n")
    viewer.wait_out("2 packets received")
    # The runner's end is the tap's, however it ends.
    (tap,) = [link for link in namespace.links() if re.fullmatch(r"hvd-[0-9a-f]{8}-0", link)]
    os.kill(daemon.runner("a"), signal.SIGKILL)
    daemon.wait("a")
    wait_for(lambda: tap not in namespace.links(), "the tap is gone")
    namespace.run("ip", "link", "delete", "hvd-other")


@pytest.mark.timeout(600)
def test_user_mode(namespace: Namespace, daemon: RealDaemon, image: GuestImage) -> None:
    if shutil.which("passt") is None:
        pytest.skip("passt is missing: sh deploy/packages.sh")
    process, shell = boot(daemon, image, "a", "--network", "user")
    assert "eth0 has 10.0.2.15" in shell.boot
    exchange(namespace, shell, "127.0.0.1", "10.0.2.2")
    (passt,) = passts(namespace)
    os.kill(passt, signal.SIGKILL)
    process.wait_out("guest # ")
    wait_for(lambda: shell("cat /sys/class/net/eth0/carrier") == "0", "the link is down")
    assert shell("echo alive") == "alive"
    daemon.wait_logs("a", "network card net0: its user-mode network (passt) is gone: it was ended by signal 9")
    shell.type("poweroff -f\n")
    assert process.end() in (0, 137)
    # Another start has another, which ends with its guest, however that ends.
    daemon.ok("start", "a")
    wait_for(lambda: passts(namespace), "another passt")
    os.kill(daemon.runner("a"), signal.SIGKILL)
    wait_for(lambda: not passts(namespace), "passt has ended")


def passts(namespace: Namespace) -> list[int]:
    return [pid for pid, name in namespace.processes().items() if name.startswith("passt")]


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    "own", [pytest.param(name, marks=[] if is_built(name) else [pytest.mark.slow]) for name in ("linux-x86_64", "linux-i386")]
)
def test_own_linux_asks_for_its_addresses(namespace: Namespace, daemon: RealDaemon, own: str) -> None:
    """Both widths, with the driver in the kernel, and two cards."""
    try:
        small = guest_image(own)
    except GuestUnavailable as error:
        pytest.skip(str(error))
    daemon.ok("network", "create", "lan", "--subnet", "10.9.0.0/24")
    process = daemon.spawn("run", "--backend", "emulation", "--name", "a", "--kernel", str(small.kernel), "--initrd",
                           str(small.initrd), "--append", small.append, "--network", "lan", "--network", "lan,ip=10.9.0.9")  # fmt: skip
    shell = quiet_shell(process)
    assert "eth0 has 10.9.0.2" in shell.boot and "eth1 has 10.9.0.9" in shell.boot
    assert "2 packets received" in shell("ping -c 2 10.9.0.1")
    assert ping(namespace, "10.9.0.9")


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_restored_guest_has_its_network(namespace: Namespace, daemon: RealDaemon, image: GuestImage) -> None:
    """Its link, and connections that were open; a clone has a card of its own."""
    daemon.ok("network", "create", "lan", "--subnet", "10.9.0.0/24")
    daemon.ok("run", "-d", "--name", "a", "--backend", "emulation", "--kernel", str(image.kernel), "--initrd", str(image.initrd),
              "--append", "console=ttyS0", "--network", "lan")  # fmt: skip
    daemon.wait_logs("a", PROMPT.decode(), BOOT_SECONDS)
    mine = attachments(daemon, "lan")["a"]
    peer = Peer(namespace, "take", "10.9.0.1", "5001")
    console = daemon.spawn("console", "a", "--no-replay")
    console.type("(echo before; sleep 5; echo after) | nc 10.9.0.1 5001\n")
    console.wait_out("nc 10.9.0.1 5001")
    assert ping(namespace, mine["ip_address"])
    daemon.ok("snapshot", "a", "one")
    daemon.ok("restore", "a", "one")
    assert ping(namespace, mine["ip_address"])
    # The connection was in the middle of its sleep: TCP goes on where it was.
    assert peer.digest() == hashlib.md5(b"before\nafter\n").hexdigest()
    daemon.ok("clone", "a/one", "b")
    cards = attachments(daemon, "lan")
    assert cards["a"] == mine and cards["b"]["ip_address"] != mine["ip_address"] and cards["b"]["mac_address"] != mine["mac_address"]
    daemon.ok("reset", "b")  # its driver begins anew
    wait_for(lambda: ping(namespace, cards["b"]["ip_address"]), "the clone answers", BOOT_SECONDS)
    # Until its reset the clone spoke with the other's address: the bridge may look for that behind the clone for a while.
    wait_for(lambda: ping(namespace, mine["ip_address"]), "the first one answers", BOOT_SECONDS)
    # Somebody deletes the tap under the guest, which goes on without.
    namespace.run("ip", "link", "delete", tap_name(daemon.show("a")["uid"], 0))
    daemon.wait_logs("a", "network card net0: the tap is gone")
    console = daemon.spawn("console", "a", "--no-replay")
    console.type("cat /sys/class/net/eth0/carrier; echo alive $((40+2))\n")
    console.wait_out("0\r\nalive 42")


def ping(namespace: Namespace, address: str) -> bool:
    return "64 bytes from" in namespace.run("ping", "-c", "1", "-W", "10", address, check=False)


def test_networks_that_are_refused(namespace: Namespace, daemon: RealDaemon) -> None:
    daemon.ok("network", "create", "lan", "--subnet", "10.9.0.0/24", "--mtu", "1400")
    for words, part in (
        (("lan",), "exists already"),
        (("other", "--subnet", "10.9.0.128/25"), "overlaps 10.9.0.0/24 of network networks/lan"),
        (("other", "--subnet", "192.0.2.0/24"), "not for private networks"),
        (("other", "--subnet", "10.9.1.1/24"), "is no IPv4 subnet"),
        (("user",), "is no valid network name"),
        (("Lan",), "is no valid network name"),
        (("x" * 64,), "is no valid network name"),
        (("other", "--mtu", "70000"), "mtu"),
    ):
        done = daemon.hvctl("network", "create", *words)
        assert done.returncode and part in done.stderr, (words, done.stderr)
    namespace.run("ip", "address", "add", "172.31.5.1/16", "dev", UPLINK)
    done = daemon.hvctl("network", "create", "other", "--subnet", "172.31.9.0/24")
    assert f"overlaps 172.31.0.0/16 of the host's {UPLINK}" in done.stderr
    namespace.run("ip", "route", "add", "10.50.0.0/16", "via", "192.0.2.1")
    assert "a route of the host" in daemon.hvctl("network", "create", "other", "--subnet", "10.50.1.0/24").stderr
    assert [link for link in namespace.links() if link.startswith("hvd-")] == ["hvd-lan"]
    # A name that is too long for an interface, and one that is taken.
    daemon.ok("network", "create", "a-rather-long-name-of-a-network")
    namespace.run("ip", "link", "add", "hvd-odd", "type", "bridge")
    daemon.ok("network", "create", "odd")
    shown = {each["name"]: each for each in daemon.ok("network", "list", "-o", "json").json["networks"]}
    for name in ("a-rather-long-name-of-a-network", "odd"):
        assert re.fullmatch(r"hvd-[0-9a-f]{8}", shown[f"networks/{name}"]["bridge"])
    assert shown["networks/lan"]["mtu"] == 1400 and "mtu 1400" in namespace.run("ip", "link", "show", "hvd-lan")
    namespace.run("ip", "link", "delete", "hvd-odd")
    assert daemon.hvctl("network", "delete", "nowhere").returncode == 3
    daemon.ok("network", "delete", "nowhere", "--allow-missing")


def test_guests_that_are_refused(namespace: Namespace, daemon: RealDaemon) -> None:
    daemon.ok("network", "create", "lan", "--subnet", "10.9.0.0/29")
    create = ("create", "--backend", "emulation", "--kernel", kernel("hello.elf"), "--memory", "8M")
    for cards, part in (
        (["nowhere"], "there is no network 'nowhere'"),
        (["lan,mac=zz"], "is no MAC address"),
        (["lan,mac=01:00:00:00:00:00"], "is a group's address"),
        (["lan,ip=10.9.0.1"], "is no address for a guest"),
        (["user,ip=10.0.2.3"], "gives out no addresses"),
        (["lan,speed=9"], "is no network card"),
        (["lan,mac=52:54:00:00:00:01"] * 2, "is that of guest"),
        (["none"] * 9, "at most 8"),
        (["lan"] * 6, "has no free address"),
    ):
        done = daemon.hvctl(*create, *(word for card in cards for word in ("--network", card)))
        assert done.returncode and part in done.stderr, (cards, done.stderr)
    assert daemon.listed() == {}
    daemon.ok(*create, "--name", "a", "--network", "lan,mac=52-54-00-00-00-AA,ip=10.9.0.5")
    card = attachments(daemon, "lan")["a"]
    assert (card["mac_address"], card["ip_address"]) == ("52:54:00:00:00:aa", "10.9.0.5")
    for words, part in (("lan,mac=52:54:00:00:00:aa", "is that of guest 'a'"), ("lan,ip=10.9.0.5", "is that of guest 'a'")):
        assert part in daemon.hvctl(*create, "--network", words).stderr
    # What it is plugged into goes, and comes back with its next start.
    namespace.run("ip", "link", "delete", "hvd-lan")
    daemon.ok("start", "a")
    daemon.wait("a")
    assert "hvd-lan" in namespace.links() and daemon.show("a")["reason"] == "EXITED"
    # passt needs a way out.
    namespace.run("ip", "route", "delete", "default")
    done = daemon.hvctl(*create, "--network", "user")
    assert "no default route" in done.stderr or "passt is missing" in done.stderr


def test_without_privilege(tmp_path: Path) -> None:
    """A daemon without CAP_NET_ADMIN says what is missing and what would help, and offers the rest."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("there is no privilege to be dropped")
    with RealDaemon(prefix=("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")) as daemon:
        require_backend(daemon)
        done = daemon.hvctl("network", "create", "lan", "-o", "json")
        error = json.loads(done.stderr or done.stdout)["error"]
        assert error["reason"] == "NETWORK_UNAVAILABLE" and "run hvd as root" in error["help"]
        daemon.run("hello.elf", "--network", "none", name="a")
        daemon.wait("a")


def test_a_flood_of_requests_for_addresses_does_not_stop_the_daemon(namespace: Namespace, daemon: RealDaemon) -> None:
    daemon.ok("network", "create", "lan", "--subnet", "10.9.0.0/24")
    # A port of the bridge that a hostile guest might be: it floods the DHCP server.
    namespace.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    namespace.run("ip", "link", "set", "v0", "master", "hvd-lan", "up")
    namespace.run("ip", "link", "set", "v1", "up")
    flood = namespace.start(
        sys.executable, "-c",
        "import socket,time\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.setsockopt(socket.SOL_SOCKET,socket.SO_BROADCAST,1)\n"
        "s.setsockopt(socket.SOL_SOCKET,socket.SO_BINDTODEVICE,b'v1\\0')\n"
        "print('ready',flush=True)\n"
        "end=time.monotonic()+60\n"
        "while time.monotonic()<end:\n"
        "    try: s.sendto(bytes(300),('255.255.255.255',67))\n"
        "    except OSError: pass\n",
    )  # fmt: skip
    assert flood.stdout and flood.stdout.readline() == b"ready\n"
    try:
        before = cpu_seconds(daemon.pid)
        for _ in range(5):
            daemon.ok("list")
        assert flood.poll() is None
        assert cpu_seconds(daemon.pid) - before < 10
    finally:
        flood.kill()
        flood.communicate()
        namespace.run("ip", "link", "delete", "v0")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_rules_are_what_nft_takes(namespace: Namespace) -> None:
    """Also those of many networks."""
    from ipaddress import IPv4Network

    from hvd.network import nat

    many = [nat.Filtered(f"hvd-n{number}", IPv4Network(f"10.{number}.0.0/24"), nat=number % 2 == 0) for number in range(40)]
    for networks in (many, many[:1], many[1:2], []):
        subprocess.run([*namespace.prefix, "nft", "-f", "-"], input=nat.ruleset("hvd_test", networks), text=True, check=True)
    assert namespace.run("nft", "list", "ruleset") == ""

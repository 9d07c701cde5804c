"""The networks' store, and networks whose host is played by the test."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hvapi.v1 import network_pb2

from hvd.errors import HvdError
from hvd.network import nat, networks
from hvd.network.links import Bridge
from hvd.network.networks import Networks
from hvd.network.store import NetworkStore

Network = network_pb2.Network


def test_networks_are_kept(tmp_path: Path) -> None:
    store = NetworkStore(tmp_path / "networks.sqlite")
    owner = store.owner()
    lan = Network(name="networks/lan", subnet="10.1.0.0/24")
    store.create(lan, "request", b"print")
    store.close()
    again = NetworkStore(tmp_path / "networks.sqlite")
    assert again.owner() == owner and len(owner) == 8 and again.load() == [lan]
    assert again.answered("request", b"print") == lan and again.answered("another", b"print") is None
    with pytest.raises(HvdError, match="different request"):
        again.answered("request", b"other")
    again.delete("networks/lan")
    assert again.load() == []
    again.close()


def test_a_store_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "networks.sqlite"
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(HvdError) as caught:
        NetworkStore(file)
    assert caught.value.reason == "STORE_DAMAGED"


def test_a_store_of_a_newer_daemon(tmp_path: Path) -> None:
    store = NetworkStore(tmp_path / "networks.sqlite")
    store._database.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(HvdError) as caught:
        NetworkStore(tmp_path / "networks.sqlite")
    assert caught.value.reason == "STORE_VERSION"


class Host:
    """Links, in memory."""

    def __init__(self) -> None:
        self.made: dict[str, Bridge] = {}
        self.fails = ""

    def bridges(self) -> list[Bridge]:
        return list(self.made.values())

    def make_bridge(self, names: list[str], key: str, *rest: object) -> str:
        if self.fails:
            raise HvdError("LINK_FAILED", what="making a bridge", problem=self.fails)
        self.made[names[0]] = Bridge(names[0], 1, key)
        return names[0]

    def delete_bridge(self, bridge: Bridge) -> None:
        del self.made[bridge.name]

    def subnets(self) -> list[tuple[IPv4Network, str]]:
        return [(IPv4Network("10.77.0.0/24"), "the host's eth0")]

    def join(self, taps: list[str], bridge: str) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(networks, "check_host", lambda network: None)
    monkeypatch.setattr(networks.links, "exists", lambda name: name in host.made)
    monkeypatch.setattr(networks.links, "obstacle", lambda: ("", ""))
    monkeypatch.setattr(networks.dhcp, "Server", lambda *about: type("Server", (), {"close": lambda self: None})())
    monkeypatch.setattr(nat, "apply", lambda table, filtered, ports=(): None)
    return host


def made(path: Path, host: Host) -> Networks:
    one = Networks(path / "networks.sqlite", IPv4Network("10.77.0.0/16"), list)
    one.links = host  # type: ignore[assignment]
    return one


async def test_a_network_from_its_creation_to_its_end(tmp_path: Path, host: Host) -> None:
    one = made(tmp_path, host)
    lan = await one.create("lan", Network(), "id-1")
    assert (lan.subnet, lan.gateway_address, lan.mtu, lan.forwarding, lan.state) == (
        "10.77.1.0/24", "10.77.1.1", 1500, Network.NAT, Network.READY,
    )  # fmt: skip
    assert await one.create("lan", Network(), "id-1") == lan
    for asked, reason in (
        (("lan", Network(), "id-2"), "NAME_TAKEN"),
        (("none", Network(), ""), "NAME_INVALID"),
        (("x", Network(subnet="10.77.0.128/25"), ""), "SUBNET_OVERLAP"),
        (("x", Network(forwarding=7), ""), "FIELD_INVALID"),
        (("x", Network(mtu=67), ""), "FIELD_INVALID"),
        (("x", Network(labels={"": "x"}), ""), "FIELD_INVALID"),
    ):
        with pytest.raises(HvdError) as caught:
            await one.create(*asked)
        assert caught.value.reason == reason
    assert list(host.made) == ["hvd-lan"]
    await one.close()
    # The next daemon finds the bridge gone, and one that it does not know.
    host.made = {"hvd-old": Bridge("hvd-old", 9, "uid-of-old")}
    two = made(tmp_path, host)
    await two.start()
    assert list(host.made) == ["hvd-lan"] and two.get("lan").state == Network.READY
    assert [network.name for network in two.page(10, "")[0]] == ["networks/lan"]
    await two.delete("lan")
    with pytest.raises(HvdError, match="there is no network 'lan'"):
        await two.delete("networks/lan")
    await two.delete("lan", allow_missing=True)
    assert host.made == {}
    await two.close()


async def test_a_bridge_that_cannot_be_made(tmp_path: Path, host: Host) -> None:
    one = made(tmp_path, host)
    host.fails = "Operation not supported"
    with pytest.raises(HvdError, match="Operation not supported"):
        await one.create("lan", Network())
    assert one.page(10, "") == ([], "")
    host.fails = ""
    await one.create("lan", Network())
    await one.close()
    # At the daemon's start it is the network's state, and the next guest tries again.
    host.made, host.fails = {}, "Operation not supported"
    two = made(tmp_path, host)
    await two.start()
    lan = two.get("lan")
    assert lan.state == Network.FAILED and "Operation not supported" in lan.status_message
    with pytest.raises(HvdError):
        await two.ensure("lan")
    host.fails = ""
    assert (await two.ensure("lan")).state == Network.READY and lan.status_message == ""
    await two.close()

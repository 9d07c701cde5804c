"""Subnets, addresses and MACs; what a guest's cards get; the packet filter's rules."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2, network_pb2
from hypothesis import given
from hypothesis import strategies as st

from hvd.errors import HvdError
from hvd.guests.interfaces import check_interfaces, resolve_interfaces
from hvd.network import addresses, cards, links, nat, networks
from hvd.network.cards import Cards
from hvd.network.networks import Networks, bridge_names

Guest = guest_pb2.Guest


@pytest.mark.parametrize("text", ["10.1.2.0/24", "10.0.0.0/8", "192.168.7.8/29", "172.16.0.0/12", "100.64.3.0/24"])
def test_subnets(text: str) -> None:
    assert str(addresses.parse_subnet(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "lan", "10.1.2.3/24", "10.1.2.0/33", "10.1.2.0/30", "10.1.2.0/7", "8.8.8.0/24", "127.0.0.0/8", "169.254.0.0/16",
     "224.0.0.0/8", "240.0.0.0/8", "0.0.0.0/8", "fd00::/64", "10.1.2.0/24; drop", "x" * 500],
)  # fmt: skip
def test_what_is_no_subnet_for_guests(text: str) -> None:
    with pytest.raises(HvdError) as caught:
        addresses.parse_subnet(text)
    assert caught.value.reason == "FIELD_INVALID" and len(caught.value.message) < 400


def test_free_subnets() -> None:
    pool = IPv4Network("10.77.0.0/22")
    taken = [IPv4Network("10.77.0.0/24"), IPv4Network("10.77.1.128/25"), IPv4Network("10.77.3.0/24")]
    assert str(addresses.free_subnet(pool, taken)) == "10.77.2.0/24"
    with pytest.raises(HvdError, match="no subnet of the pool"):
        addresses.free_subnet(pool, [*taken, IPv4Network("10.77.2.9/32")])
    assert str(addresses.free_subnet(IPv4Network("10.9.0.0/26"), [])) == "10.9.0.0/26"


def test_free_addresses() -> None:
    subnet = IPv4Network("10.1.2.0/29")
    taken: set[IPv4Address] = set()
    for _ in range(5):
        taken.add(addresses.free_address(subnet, taken, "lan"))
    assert {str(address) for address in taken} == {f"10.1.2.{number}" for number in range(2, 7)}
    with pytest.raises(HvdError, match="has no free address"):
        addresses.free_address(subnet, taken, "lan")
    for text in ("10.1.2.0", "10.1.2.1", "10.1.2.7", "10.1.3.2", "", "two", "::1"):
        with pytest.raises(HvdError, match="no address for a guest"):
            addresses.parse_address(text, subnet, "ip_address")


@given(st.uuids(), st.integers(0, 7))
def test_made_up_macs_are_local_and_of_one_card(uid: object, number: int) -> None:
    mac = addresses.made_mac(str(uid), number)
    assert addresses.parse_mac(mac, "mac") == mac and int(mac[:2], 16) & 3 == 2
    assert addresses.made_mac(str(uid), number) == mac != addresses.made_mac(str(uid), number + 1)
    assert addresses.made_mac(str(uid), number, {mac}) != mac


@pytest.mark.parametrize(
    "text", ["", "52:54:00:12:34", "53:54:00:12:34:56", "52:54:00:12:34:5g", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "x" * 200]
)
def test_what_is_no_mac(text: str) -> None:
    with pytest.raises(HvdError) as caught:
        addresses.parse_mac(text, "mac_address")
    assert caught.value.reason == "FIELD_INVALID"
    assert addresses.parse_mac("52-54-00-AB-CD-EF", "mac_address") == "52:54:00:ab:cd:ef"


def test_bridges_have_names_that_fit() -> None:
    assert bridge_names("lan", "12345678-9abc") == ["hvd-lan", "hvd-12345678"]
    assert bridge_names("a" * 11, "12345678-9abc")[0] == "hvd-" + "a" * 11
    assert bridge_names("a" * 12, "12345678-9abc") == ["hvd-12345678"]
    assert len(links.tap_name("12345678-9abc-def0", 7)) <= 15


def test_rules() -> None:
    lan = nat.Filtered("hvd-lan", IPv4Network("10.1.0.0/24"), nat=True)
    lab = nat.Filtered("hvd-lab", IPv4Network("10.2.0.0/24"), nat=False)
    rules = nat.ruleset("hvd_x", [lan, lab])
    assert rules.startswith("add table ip hvd_x\ndelete table ip hvd_x\ntable ip hvd_x {")
    assert 'ip saddr 10.1.0.0/24 oifname != "hvd-lan" masquerade' in rules and "10.2.0.0" not in rules
    assert nat.ruleset("hvd_x", []) == "add table ip hvd_x\ndelete table ip hvd_x\n"


# --- cards ---


class Table:
    """Guests that there are."""

    def __init__(self) -> None:
        self.guests: list[Guest] = []

    def __call__(self) -> Iterable[Guest]:
        return self.guests


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(cards, "check_host", lambda network: None)
    monkeypatch.setattr(cards, "check_user_mode", lambda: None)
    return Table()


@pytest.fixture
def made(table: Table, tmp_path: Path) -> Cards:
    known = Networks(tmp_path / "networks.sqlite", IPv4Network("10.77.0.0/16"), table)
    for name, subnet in (("lan", "10.1.0.0/29"), ("lab", "10.2.0.0/24")):
        known._networks[f"networks/{name}"] = network_pb2.Network(name=f"networks/{name}", subnet=subnet)
    return Cards(known)


def guest(name: str, *interfaces: guest_pb2.NetworkInterface) -> Guest:
    machine = guest_pb2.MachineConfig(network_interfaces=interfaces)
    return Guest(name=f"guests/{name}", uid=f"uid-{name}", machine=machine)


def card(network: str, mac: str = "", ip: str = "") -> guest_pb2.NetworkInterface:
    return guest_pb2.NetworkInterface(network=network, mac_address=mac, ip_address=ip)


async def test_cards_get_what_they_need(table: Table, made: Cards) -> None:
    for number in range(5):
        one = guest(f"g{number}", card("lan"))
        await made.assign(one)
        table.guests.append(one)
    found = [each.machine.network_interfaces[0] for each in table.guests]
    assert [each.ip_address for each in found] == [f"10.1.0.{number}" for number in range(2, 7)]
    assert len({each.mac_address for each in found}) == 5 and {each.network for each in found} == {"networks/lan"}
    with pytest.raises(HvdError, match="has no free address"):
        await made.assign(guest("g6", card("lan")))
    del table.guests[1]
    another = guest("g7", card("networks/lan"), card("lab", ip="10.2.0.200"), card("user"), card("none"))
    await made.assign(another)
    assert [each.ip_address for each in another.machine.network_interfaces] == ["10.1.0.3", "10.2.0.200", "", ""]
    specs = resolve_interfaces(another)
    assert [(spec.name, spec.network) for spec in specs] == [("net0", "lan"), ("net1", "lab"), ("net2", "user"), ("net3", "none")]
    assert len({spec.mac_address for spec in specs}) == 4


@pytest.mark.parametrize(
    ("interfaces", "reason"),
    [
        ([card("lan", mac="52:54:00:00:00:01")], "MAC_TAKEN"),
        ([card("lan", mac="52-54-00-00-00-0A"), card("lan", mac="52:54:00:00:00:0a")], "MAC_TAKEN"),
        ([card("lan", ip="10.1.0.2")], "ADDRESS_TAKEN"),
        ([card("lan", ip="10.1.0.4"), card("lan", ip="10.1.0.4")], "ADDRESS_TAKEN"),
        ([card("lan", ip="10.1.0.1")], "FIELD_INVALID"),
        ([card("nowhere")], "NETWORK_NOT_FOUND"),
    ],
)
async def test_cards_that_are_refused(table: Table, made: Cards, interfaces: list[guest_pb2.NetworkInterface], reason: str) -> None:
    table.guests.append(guest("one", card("networks/lan", "52:54:00:00:00:01", "10.1.0.2")))
    with pytest.raises(HvdError) as caught:
        await made.assign(guest("two", *interfaces))
    assert caught.value.reason == reason
    await made.assign(guest("three", card("lab", mac="52:54:00:00:00:01")))  # on another network


@pytest.mark.parametrize(
    ("machine", "part"),
    [
        ([card("")], "is no network"),
        ([card("Lan")], "is no network"),
        ([card("lan", mac="53:00:00:00:00:00")], "mac_address"),
        ([card("user", ip="10.0.2.9")], "gives out no addresses"),
        ([card("none")] * 9, "at most 8"),
    ],
)
def test_cards_that_make_no_sense(machine: list[guest_pb2.NetworkInterface], part: str) -> None:
    with pytest.raises(HvdError, match=part):
        check_interfaces(guest_pb2.MachineConfig(network_interfaces=machine))


def test_why_there_is_no_user_mode_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(HvdError, match="passt is missing; apt-get install passt"):
        cards.check_user_mode()
    monkeypatch.setattr("shutil.which", lambda program: "/usr/bin/passt")
    routes = tmp_path / "route"
    monkeypatch.setattr(cards, "_ROUTES", routes)
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    routes.write_text(head + "eth0 0002A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n")
    with pytest.raises(HvdError, match="no default route"):
        cards.check_user_mode()
    routes.write_text(head + "eth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\n")
    cards.check_user_mode()


def test_why_there_are_no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvd.network.links._has_net_admin", lambda: False)
    with pytest.raises(HvdError, match=r"CAP_NET_ADMIN.*run hvd as root, or use --network user"):
        networks.check_host("lan")
    monkeypatch.setattr("hvd.network.links._has_net_admin", lambda: True)
    monkeypatch.setattr("hvd.network.links.TUN", "/nonexistent")
    with pytest.raises(HvdError, match="/nonexistent cannot be opened: No such file"):
        networks.check_host("lan")
    monkeypatch.setattr("hvd.network.links.TUN", "/dev/null")
    monkeypatch.setattr("shutil.which", lambda program, path: None)
    with pytest.raises(HvdError, match="apt-get install nftables"):
        networks.check_host("lan")

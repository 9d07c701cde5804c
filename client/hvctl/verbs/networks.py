"""network create, list, show, delete; and how run and create name a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hvctl.output import Column, document, is_document, print_document, print_items, print_table
from hvctl.sdk.names import network_id, network_name
from hvctl.settings import Settings, verb
from hvctl.values import LABEL
from hvctl.verbs.deleting import delete_each
from hvctl.verbs.listing import ROWS, rows_of

if TYPE_CHECKING:
    from hvapi.v1 import network_pb2

FORMATS = ("table", "json", "jsonl", "yaml", "name")


def _state(network: network_pb2.Network) -> str:
    return network.State.Name(network.state)


def _forwarding(network: network_pb2.Network) -> str:
    return network.Forwarding.Name(network.forwarding).lower()


COLUMNS: list[Column[network_pb2.Network]] = [
    Column("NAME", lambda n: network_id(n.name)),
    Column("STATE", _state),
    Column("SUBNET", lambda n: n.subnet),
    Column("GATEWAY", lambda n: n.gateway_address),
    Column("FORWARDING", _forwarding),
    Column("BRIDGE", lambda n: n.bridge),
    Column("MTU", lambda n: str(n.mtu), wide=True, right=True),
    Column("GUESTS", lambda n: str(len({each.guest for each in n.attachments})), right=True),
    Column("PROBLEM", lambda n: n.status_message or "-", wide=True),
]

@verb(formats=FORMATS)
@click.argument("name")
@click.option("--subnet", default="", metavar="A.B.C.0/N", help="IPv4; default: a free one of the daemon's pool.")
@click.option("--no-nat", is_flag=True, help="The guests reach each other and the host, nothing else.")
@click.option("--mtu", type=click.IntRange(68, 65535), metavar="BYTES", help="Largest IP packet; default 1500.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="Label; may be repeated.")
def create(
    settings: Settings, name: str, subnet: str, no_nat: bool, mtu: int | None, labels: tuple[tuple[str, str], ...]
) -> None:
    """Makes a network: a bridge of the host, with an address, DHCP for its guests and NAT to the outside."""
    from hvapi.v1 import network_pb2

    network = network_pb2.Network(
        subnet=subnet,
        forwarding=network_pb2.Network.NONE if no_nat else network_pb2.Network.NAT,
        mtu=mtu or 0,
        labels=dict(labels),
    )
    made = settings.client.create_network(network_id=network_id(name), network=network)
    if is_document(settings.output):
        print_document(settings.output, document(made))
    else:
        click.echo(made.name if settings.output == "name" else network_id(made.name))


@verb()
def list_networks(settings: Settings) -> None:
    """Lists networks."""
    from hvapi.v1 import network_pb2

    everything = network_pb2.ListNetworksResponse()
    token = ""
    while True:
        page = settings.client.list_networks(page_token=token)
        everything.networks.extend(page.networks)
        token = page.next_page_token
        if not token:
            break
    print_items(settings, everything, everything.networks, COLUMNS, lambda network: network.name)


@verb(formats=FORMATS)
@click.argument("name")
def show(settings: Settings, name: str) -> None:
    """Shows a network, and the guests on it with their addresses."""
    network = settings.client.get_network(name=network_name(name))
    if is_document(settings.output):
        print_document(settings.output, document(network))
    elif settings.output == "name":
        click.echo(network.name)
    else:
        print_table(settings, rows_of(network), ROWS)


@verb(formats=FORMATS)
@click.argument("name", nargs=-1, required=True)
@click.option("--allow-missing", is_flag=True, help="It is no failure when there is no such network.")
def delete(settings: Settings, name: tuple[str, ...], allow_missing: bool) -> int:
    """Deletes networks. One that a guest names, running or not, stays."""
    return delete_each(
        settings,
        (network_name(word) for word in name),
        lambda network: settings.client.delete_network(name=network, allow_missing=allow_missing),
        network_id,
    )

"""What a machine's network cards are plugged into."""

from __future__ import annotations

from hvd.board.net.port import Port, Unplugged
from hvd.board.net.tap import Tap
from hvd.board.net.user import UserNetwork
from hvd.board.spec import NetworkSpec
from hvd.errors import HvdError


def open_port(card: NetworkSpec) -> Port:
    """Raises HvdError NETWORK_UNAVAILABLE."""
    problem, remedy = "it has no tap", "start the guest by the daemon, which makes taps"
    try:
        if card.network == "none":
            return Unplugged()
        if card.network == "user":
            return UserNetwork.start()
        if card.fd >= 0:
            return Tap(card.fd, card.mtu)
    except OSError as error:
        problem, remedy = str(error), "`apt-get install passt`, and see runner.log in the guest's directory"
    raise HvdError("NETWORK_UNAVAILABLE", network=card.network, problem=problem, remedy=remedy)

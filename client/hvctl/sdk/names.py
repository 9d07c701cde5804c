"""Resource names (AIP-122). Imports nothing, so that a command line can use it for help and completion."""

from __future__ import annotations


def guest_name(guest: str) -> str:
    """web-1 or guests/web-1 -> guests/web-1"""
    return guest if guest.startswith("guests/") else f"guests/{guest}"


def guest_id(name: str) -> str:
    """guests/web-1 -> web-1"""
    return name.removeprefix("guests/")


def image_name(image: str) -> str:
    """linux or images/linux -> images/linux; empty stays empty."""
    return image if not image or image.startswith("images/") else f"images/{image}"


def image_id(name: str) -> str:
    """images/linux -> linux"""
    return name.removeprefix("images/")


def network_name(network: str) -> str:
    """lan or networks/lan -> networks/lan; what is no network of the daemon ("user", "none", "host") stays as it is."""
    return network if network in ("", "user", "none", "host") or network.startswith("networks/") else f"networks/{network}"


def network_id(name: str) -> str:
    """networks/lan -> lan"""
    return name.removeprefix("networks/")


def volume_name(volume: str) -> str:
    """data or volumes/data -> volumes/data"""
    return volume if volume.startswith("volumes/") else f"volumes/{volume}"


def volume_id(name: str) -> str:
    """volumes/data -> data"""
    return name.removeprefix("volumes/")


def snapshot_name(snapshot: str) -> str:
    """web-1/before or guests/web-1/snapshots/before -> guests/web-1/snapshots/before"""
    guest, _, name = snapshot.removeprefix("guests/").replace("/snapshots/", "/").partition("/")
    return f"guests/{guest}/snapshots/{name}"

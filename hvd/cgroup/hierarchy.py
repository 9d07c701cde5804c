"""Which controllers this host has, and where: version 1, version 2, or some of each. Asked of the mounts and of
cgroup.controllers, not of the distribution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Below each controller: hvd/<uid of the guest>.
PARENT = "hvd"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Controller -> where its groups are; "unified" is the mount of version 2, whatever controllers it has."""

    version_1: dict[str, Path]
    unified: Path | None
    version_2: frozenset[str]
    # Of version 1 without a controller, as systemd's: runtimes make groups in them, too.
    named: tuple[Path, ...] = ()

    def has(self, controller: str) -> bool:
        return controller in self.version_1 or controller in self.version_2

    def directory(self, controller: str, uid: str) -> Path | None:
        """Of a guest's group of that controller; None = the host does not have it."""
        if controller in self.version_1:
            return self.version_1[controller] / PARENT / uid
        return self.unified_directory(uid) if controller in self.version_2 else None

    def unified_directory(self, uid: str) -> Path | None:
        """Of its group in version 2, where pressure and kill are even without a controller."""
        return None if self.unified is None else self.unified / PARENT / uid

    def directories(self, uid: str) -> list[Path]:
        """All groups of a guest."""
        found = {path / PARENT / uid for path in (*self.version_1.values(), *self.named)}
        if self.unified is not None:
            found.add(self.unified / PARENT / uid)
        return sorted(found)


def hierarchy(mounts: Path = Path("/proc/self/mountinfo")) -> Hierarchy:
    version_1: dict[str, Path] = {}
    unified: Path | None = None
    named: list[Path] = []
    for line in mounts.read_text("utf-8", "replace").splitlines():
        # proc(5), /proc/PID/mountinfo: ... (5) mount point ... - (9) type (10) source (11) super options
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        where = Path(left.split(" ")[4])
        if kind == "cgroup":
            if "name=" in options:
                named.append(where)
            for option in options.split(","):
                if option not in ("rw", "ro", "xattr", "clone_children", "noprefix") and "=" not in option:
                    version_1[option] = where
        elif kind == "cgroup2" and unified is None:
            unified = where
    controllers: frozenset[str] = frozenset()
    if unified is not None:
        try:
            controllers = frozenset((unified / "cgroup.controllers").read_text("ascii").split())
        except OSError:  # mounted, but of another namespace
            unified = None
    return Hierarchy(version_1, unified, controllers, tuple(named))

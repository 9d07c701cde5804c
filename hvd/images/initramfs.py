"""The initramfs of the project's Linux guests: busybox and one script."""

from __future__ import annotations

from collections.abc import Sequence

from hvd.images import cpio

# Where file systems get mounted, and where the guest's user works.
_DIRECTORIES = ("bin", "dev", "proc", "root", "sys", "tmp")


def busybox_initramfs(
    busybox: bytes,
    init: bytes,
    modules: Sequence[tuple[str, bytes]] = (),
    programs: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """modules: files that the script loads, in this order (hvd.images.kernel_modules). programs: more of /bin.

    A cpio archive whose /init is the script and whose commands are all in a statically linked busybox.

    Debian's busybox-static starts its own commands without looking for files, so that /bin/sh is the only link that
    is needed: 270 links would cost some million instructions at each boot.
    """
    return cpio.archive(
        [
            *(cpio.directory(name) for name in _DIRECTORIES),
            # The kernel opens it before /init can mount anything.
            cpio.character_device("dev/console", 5, 1),
            cpio.file("bin/busybox", busybox, 0o755),
            cpio.symlink("bin/sh", "busybox"),
            cpio.file("init", init, 0o755),
            *(cpio.file(f"bin/{name}", content, 0o755) for name, content in programs),
            *_modules(modules),
        ]
    )


def _modules(modules: Sequence[tuple[str, bytes]]) -> list[cpio.Entry]:
    if not modules:
        return []
    order = "".join(f"{name}\n" for name, _ in modules)
    files = [cpio.file(f"modules/{name}", content) for name, content in modules]
    return [cpio.directory("modules"), cpio.file("modules/order", order.encode()), *files]

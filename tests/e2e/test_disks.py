"""Disks of real guests: from a file by `hvctl image import` to a device of Linux, and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from guest_shell import Shell, quiet_shell
from real_daemon import Done, Process, RealDaemon, kernel

from tests.guest_images import DISK_MODULES, GuestUnavailable, debian_root, guest_image

MIB = 1 << 20


def linux(*append: str) -> list[str]:
    """Options of `hvctl run`: Debian's stock cloud kernel, with the modules that it needs for disks in its initramfs."""
    try:
        image = guest_image("debian-cloud", DISK_MODULES)
    except GuestUnavailable as error:
        pytest.skip(str(error))
    return ["--kernel", str(image.kernel), "--initrd", str(image.initrd), "--memory", "256M",
            "--append", " ".join(["console=ttyS0", *append])]  # fmt: skip


def disk_file(path: Path, size: int = 4 * MIB, seed: bytes = b"x") -> Path:
    """A raw image that is known for a disk by its boot signature; everywhere something else."""
    blocks = -(-size // 32)
    content = bytearray(
        b"".join(hashlib.sha256(seed + number.to_bytes(4, "little")).digest() for number in range(blocks))
    )
    content[510:512] = b"\x55\xaa"
    path.write_bytes(content[:size])
    return path


def refusal(done: Done) -> tuple[str, str]:
    """Reason and the whole message of an hvctl with -o json that failed."""
    assert done.returncode, done.stdout
    error = json.loads(done.stderr)["error"]
    return error["reason"], f"{error['message']}; {error['help']}"


# ---- a Debian on a disk


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_debian_on_a_disk(own_daemon: RealDaemon) -> None:
    """Its stock kernel, modules in the initramfs, ext4 made of what mmdebstrap made: writes, reboots, finds it again; after a
    reset, a stop, a daemon that restarts, and only in its own overlay."""
    try:
        root = debian_root()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    daemon = own_daemon
    daemon.ok("image", "import", "debian", str(root), timeout=300)
    before = hashlib.sha256(root.read_bytes()).hexdigest()
    (blob,) = (
        path for path in (daemon.state_dir / "blobs" / "sha256").iterdir() if path.stat().st_size == root.stat().st_size
    )
    options = [*linux("root=/dev/vda", "rw", "init=/bin/sh"), "--disk", "debian", "--on-reset", "restart"]
    process = daemon.spawn("run", "--name", "a", *options)
    prompt = "\n# "
    shell = Shell(process, prompt)
    assert "EXT4-fs (vda): mounted filesystem" in shell.boot
    assert "Debian GNU/Linux" in shell("cat /etc/os-release")
    assert shell("dpkg -l bash | tail -1 | cut -c1-8") == "ii  bash"
    shell("echo what was written >/root/note; dd if=/dev/urandom of=/root/noise bs=1M count=5 2>/dev/null; sync")
    noise = shell("md5sum </root/noise")
    # sync has written it all: as after a reset, or a power cut.
    seen = len(process.out)
    shell.type("busybox reboot -f\n")
    shell = Shell(process, prompt, seen)
    assert "EXT4-fs (vda): mounted filesystem" in shell.boot
    assert shell("cat /root/note; md5sum </root/noise") == f"what was written\n{noise}"
    shell("echo more >>/root/note; sync")

    daemon.restart()
    process.close()
    viewer = daemon.spawn("console", "a", "--no-replay")
    viewer.type("\n")
    shell = Shell(viewer, prompt)
    assert shell("cat /root/note") == "what was written\nmore"
    daemon.ok("kill", "a")
    viewer.close()
    daemon.ok("start", "a")
    shell = Shell(daemon.spawn("console", "a", "--replay", "1M"), prompt)
    assert shell("cat /root/note; md5sum </root/noise") == f"what was written\nmore\n{noise}"
    # Another guest of the same image has none of it.
    other = Shell(daemon.spawn("run", "--name", "b", *options), prompt)
    assert other("ls /root/note 2>&1 | tail -1").endswith("No such file or directory")
    assert refusal(daemon.hvctl("image", "delete", "debian", "-o", "json")) == (
        "IMAGE_IN_USE",
        "image 'images/debian' is used by guests/a, guests/b; delete those first",
    )

    shown = daemon.show("a")
    assert 5 * MIB < int(shown["disk_stored_bytes"]) < 64 * MIB
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == before, "the image has not changed"
    assert blob.stat().st_blocks * 512 < root.stat().st_size // 2, "and is stored without its holes"
    assert [image["used_by"] for image in daemon.ok("image", "list", "-o", "json").json["images"]] == [
        ["guests/a", "guests/b"]
    ]
    disks = list((daemon.state_dir / "guests").iterdir())
    assert len(disks) == 2
    daemon.ok("delete", "--force", "a", "b")
    assert not list((daemon.state_dir / "guests").iterdir())
    daemon.ok("image", "delete", "debian")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_debian_recipe(daemon: RealDaemon) -> None:
    """Built, booted by systemd to a login, its disk written; powered off by itself and by the power button."""
    built = daemon.hvctl("image", "build", "debian", timeout=1500)
    if built.returncode and any(reason in built.stderr for reason in ("PACKAGE_", "TOOL_MISSING", "ROOT_NEEDED")):
        pytest.skip(built.stderr)
    assert built.returncode == 0, built.stderr
    process = daemon.spawn("run", "--name", "a", "--image", "debian")

    def login(process: Process) -> Shell:
        process.wait_out("login: ", 600)
        process.type("root\n")
        Shell(process, "# ")  # bash, whose line editor writes more than what commands print
        seen = len(process.out)
        process.type("exec sh\n")
        return Shell(process, "# ", seen)

    shell = login(process)
    assert shell("systemctl is-system-running --wait; echo; cat /proc/1/comm").split()[-1] == "systemd"
    shell("echo kept >/root/note")
    shell.type("poweroff\n")
    assert process.end(300) == 0
    assert daemon.show("a")["reason"] == "POWEROFF"
    daemon.ok("start", "a")
    process = daemon.spawn("console", "a", "--replay", "1M")
    assert login(process)("cat /root/note") == "kept"
    daemon.ok("stop", "a", "--timeout", "120", timeout=200)
    assert daemon.show("a")["reason"] == "POWEROFF"
    daemon.ok("delete", "a")
    daemon.ok("image", "delete", "debian")


# ---- what the kernel sees of disks, and of their errors


@contextmanager
def shell_on(daemon: RealDaemon, name: str, *options: str) -> Iterator[Shell]:
    process = daemon.spawn("run", "--name", name, *linux(), *options)
    try:
        shell = quiet_shell(process)
        yield shell
    finally:
        daemon.hvctl("kill", name)


@pytest.mark.timeout(600)
def test_disks_of_every_sort(daemon: RealDaemon, tmp_path: Path) -> None:
    odd = disk_file(tmp_path / "odd", 100_000)  # 195 sectors and 160 bytes
    image = disk_file(tmp_path / "image")
    for file in (odd, image):
        daemon.ok("image", "import", file.name, str(file))
    options = ("--disk", "image", "--disk", "image,ro", "--disk", "image,size=8M", "--disk", "size=1G", "--disk", "odd")
    with shell_on(daemon, "a", *options) as shell:
        sectors = shell("cat /sys/block/vd?/size").split()
        assert sectors == [str(4 * MIB // 512), str(4 * MIB // 512), str(8 * MIB // 512), str((1 << 30) // 512), "196"]
        assert shell("cat /sys/block/vd?/ro").split() == ["0", "1", "0", "0", "0"]
        whole = hashlib.md5(image.read_bytes()).hexdigest()
        assert shell("for d in vda vdb; do md5sum </dev/$d; done") == f"{whole}  -\n{whole}  -"
        # Beyond an image's end, and at the end of one that ends within a sector, there are zeroes.
        assert shell("md5sum </dev/vdc").split()[0] == hashlib.md5(image.read_bytes() + bytes(4 * MIB)).hexdigest()
        assert shell("md5sum </dev/vde").split()[0] == hashlib.md5(odd.read_bytes() + bytes(352)).hexdigest()
        assert shell("head -c 1000000 /dev/vdd | tr -d '\\0' | wc -c") == "0"
        shell("yes written | dd iflag=fullblock of=/dev/vda bs=4k seek=7 count=20 conv=fsync 2>/dev/null")
        shell("yes written | dd iflag=fullblock of=/dev/vdd bs=1M seek=1000 count=2 conv=fsync 2>/dev/null")
        assert "not permitted" in shell("dd if=/dev/zero of=/dev/vdb count=1 conv=fsync 2>&1")
        assert shell("dd if=/dev/vdd bs=1M skip=1001 count=1 2>/dev/null | md5sum").split()[0] == written(1)
    metrics = daemon.ok("metrics", "a").stdout
    assert number(metrics, "hvd_guest_disk_read_bytes_total", device="disk1") >= 4 * MIB
    assert number(metrics, "hvd_guest_disk_write_bytes_total", device="disk3") == 2 * MIB
    assert number(metrics, "hvd_guest_disk_operations_total", device="disk0", operation="flush") >= 1
    assert number(metrics, "hvd_guest_disk_errors_total", device="disk0") == 0
    stored = int(daemon.show("a")["disk_stored_bytes"])
    assert 2 * MIB < stored < 4 * MIB, "two megabytes were written to a disk of one gigabyte"
    # It is there at the next start.
    daemon.ok("start", "a")
    shell = quiet_shell(daemon.spawn("console", "a", "--replay", "1M"))
    assert shell("dd if=/dev/vdd bs=1M skip=1000 count=1 2>/dev/null | md5sum").split()[0] == written(0)
    assert shell("dd if=/dev/vda bs=4k skip=7 count=1 2>/dev/null | head -c 8") == "written"
    # Discards give the room back.
    if "not found" not in shell("blkdiscard /dev/vdd 2>&1"):
        assert int(daemon.show("a")["disk_stored_bytes"]) < stored - MIB
        assert shell("dd if=/dev/vdd bs=1M skip=1000 count=1 2>/dev/null | tr -d '\\0' | wc -c") == "0"
    daemon.ok("delete", "--force", "a")
    daemon.ok("image", "delete", "odd", "image")


def written(megabyte: int) -> str:
    text = (b"written\n" * (2 * MIB // 8))[megabyte * MIB : (megabyte + 1) * MIB]
    return hashlib.md5(text).hexdigest()


def number(metrics: str, series: str, **labels: str) -> float:
    for line in metrics.splitlines():
        if line.startswith(series + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.split()[-1])
    pytest.fail(f"no {series} {labels} in {metrics}")


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_host_disk_that_is_full_and_an_image_that_is_cut(own_daemon: RealDaemon, tmp_path: Path) -> None:
    """The guest gets I/O errors, and goes on where that is possible; nobody else notices."""
    daemon = own_daemon
    daemon.stop()
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40M", "hvd-test", small], check=False).returncode
    ):
        pytest.skip("a small file system can be mounted by root only")
    try:
        daemon.state_dir = small / "state"
        daemon.start()
        image = disk_file(tmp_path / "image")
        daemon.ok("image", "import", "image", str(image))
        with shell_on(daemon, "a", "--disk", "size=40M", "--disk", "image") as shell:
            assert "error" not in shell("yes written | dd iflag=fullblock of=/dev/vda bs=1M count=2 conv=fsync 2>&1")
            wrote = shell("dd if=/dev/zero of=/dev/vda bs=1M seek=2 count=36 conv=fsync 2>&1")
            assert "error" in wrote.lower() or "No space" in wrote, wrote
            assert "I/O error, dev vda" in shell("dmesg | tail -30")
            # What was written before is there, and room brings the disk back.
            assert shell("dd if=/dev/vda bs=1M count=1 skip=1 2>/dev/null | md5sum").split()[0] == written(1)
            subprocess.run(["mount", "-o", "remount,size=128M", small], check=True)
            again = shell("yes written | dd iflag=fullblock of=/dev/vda bs=1M seek=36 count=2 conv=fsync 2>&1")
            assert "2+0 records out" in again and "error" not in again.lower(), again
            assert shell("dd if=/dev/vda bs=1M count=1 skip=37 2>/dev/null | md5sum").split()[0] == written(1)
            assert number(daemon.ok("metrics", "a").stdout, "hvd_guest_disk_errors_total", device="disk0") > 0
            # The image is cut under the guest.
            (blob,) = (
                path for path in (daemon.state_dir / "blobs" / "sha256").iterdir() if path.stat().st_size == 4 * MIB
            )
            os.truncate(blob, MIB)
            read = shell("dd if=/dev/vdb bs=64k count=64 of=/dev/null 2>&1")
            assert "I/O error" in read or "Input/output" in read, read
            assert shell("dd if=/dev/vdb bs=64k count=15 2>/dev/null | md5sum").split()[0] == (
                hashlib.md5(image.read_bytes()[: 15 << 16]).hexdigest()
            )
            assert shell("echo $((6*7))") == "42"
        reason, message = refusal(daemon.hvctl("start", "a", "-o", "json"))
        assert reason == "BLOB_DAMAGED" and f"have {MIB} bytes, they had {4 * MIB}" in message and "again" in message
        assert daemon.show("a")["state"] == "FAILED"
        daemon.clear()
        daemon.stop()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


# ---- refusals


@pytest.fixture(scope="module")
def images(shared_daemon: RealDaemon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files; "disk" and "cdrom" are images of the daemon."""
    folder = tmp_path_factory.mktemp("files")
    disk_file(folder / "disk")
    iso = bytearray(64 << 10)
    iso[16 * 2048 : 16 * 2048 + 6] = b"\x01CD001"
    (folder / "cdrom").write_bytes(iso)
    (folder / "empty").write_bytes(b"")
    (folder / "qcow2").write_bytes(b"QFI\xfb" + bytes(1000))
    (folder / "vmdk").write_bytes(b"KDMV" + bytes(1000))
    (folder / "nonsense").write_bytes(b"nonsense " * 1000)
    (folder / "folder").mkdir()
    for name in ("disk", "cdrom"):
        shared_daemon.ok("image", "import", name, str(folder / name))
    shared_daemon.ok("image", "import", "kernel", kernel("hello.elf"))
    shared_daemon.ok("image", "import", "rootfs", str(folder / "folder"))
    return folder


@pytest.mark.parametrize(
    ("words", "reason", "said"),
    [
        (["@empty"], "FILE_EMPTY", "0 bytes"),
        (["@empty", "--kind", "disk"], "IMAGE_EMPTY", "0 bytes"),
        (["@qcow2"], "DISK_NOT_RAW", "qemu-img convert -O raw"),
        (["@qcow2", "--kind", "disk"], "DISK_NOT_RAW", "qcow2"),
        (["@vmdk"], "DISK_NOT_RAW", "vmdk"),
        (["@nonsense"], "FILE_KIND_UNKNOWN", "--kind"),
        (["@nonsense", "--kind", "cdrom"], "IMAGE_CONTENT", "--kind disk"),
        (["@nonsense", "--kind", "rootfs"], "IMAGE_CONTENT", "tar"),
        (["@missing"], "FILE_UNREADABLE", "No such file"),
        (["@disk", "--size", "2G"], "USAGE", "--as disk"),
        (["@disk", "--as", "disk"], "USAGE", "of a folder or a tar file"),
        (["@folder", "--kind", "cdrom"], "USAGE", "a folder can be"),
        (["@disk", "--kernel", "@disk", "--kind", "kernel"], "USAGE", "leave --kernel out"),
    ],
)
def test_refused_images(daemon: RealDaemon, images: Path, words: list[str], reason: str, said: str) -> None:
    """Words with an @ are files."""
    words = [str(images / word[1:]) if word.startswith("@") else word for word in words]
    done = daemon.hvctl("image", "import", "mine", *words, "-o", "json")
    found, message = refusal(done)
    assert (found, said in message) == (reason, True), message


@pytest.mark.parametrize(
    ("words", "reason", "said"),
    [
        (["--disk", "none"], "IMAGE_NOT_FOUND", "image list"),
        (["--disk", "kernel"], "IMAGE_KIND", "is an image of kind kernel"),
        (["--disk", "cdrom"], "IMAGE_KIND", "--cdrom"),
        (["--disk", "rootfs"], "IMAGE_KIND", "--as disk"),
        (["--cdrom", "disk"], "IMAGE_KIND", "--disk"),
        (["--disk", "disk,size=1M"], "FIELD_INVALID", "less than the 4194304"),
        (["--disk", "size=1000"], "FIELD_INVALID", "multiple of 512"),
        (["--disk", "size=100T"], "FIELD_INVALID", "out of range"),
        (["--disk", "size=1M,ro"], "FIELD_INVALID", "of no use"),
        (["--disk", "cdrom,cdrom,bus=virtio"], "FIELD_INVALID", "IDE"),
        (["--disk", "cdrom,cdrom,size=1G"], "FIELD_INVALID", "as large as its image"),
        (["--disk", "size=1M"] * 17, "FIELD_INVALID", "at most 16"),
        (["--disk", "size=1M,bus=ide"] * 5, "FIELD_INVALID", "at most 4"),
        (["--boot", "disk", "--cdrom", "cdrom"], "FIELD_INVALID", "--disk"),
        (["--boot", "cdrom", "--disk", "disk"], "FIELD_INVALID", "--cdrom"),
    ],
)
def test_refused_disks(daemon: RealDaemon, images: Path, words: list[str], reason: str, said: str) -> None:
    done = daemon.hvctl(
        "create", "--name", "a", "-o", "json", "--backend", "emulation", "--kernel", kernel("hello.elf"), *words
    )
    found, message = refusal(done)
    assert (found, said in message) == (reason, True), message
    assert not daemon.listed()
    left = daemon.state_dir / "guests"
    assert not left.exists() or not list(left.iterdir())


@pytest.mark.parametrize("value", ["", "disk,", "disk,bus=scsi", "disk,size=x", "ro", "disk,rw"])
def test_disks_that_hvctl_refuses(daemon: RealDaemon, value: str) -> None:
    done = daemon.hvctl("create", "--kernel", kernel("hello.elf"), "--disk", value)
    assert done.returncode in (2, 3), done.stderr
    assert done.returncode == 2 or value == "ro"  # which could be an image's name


def test_a_guest_without_a_kernel_boots_from_its_disk(daemon: RealDaemon, images: Path) -> None:
    assert refusal(daemon.hvctl("create", "-o", "json"))[0] == "KERNEL_MISSING"
    for words in (["--disk", "disk"], ["--boot", "disk", "--disk", "disk"], ["--image", "disk"], ["--cdrom", "cdrom"]):
        daemon.ok("create", "--backend", "emulation", *words)
    # An image of a disk is its guest's first disk.
    guest = daemon.ok("create", "--image", "disk", "--disk", "size=1M", "-o", "json").json
    assert [disk["size_bytes"] for disk in guest["machine"]["disks"]] == [str(MIB)]
    files = sorted(path.name for path in (daemon.state_dir / "guests" / guest["uid"]).iterdir())
    assert files == ["disk0", "disk1"]


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(b"something else" + whole[14:])


@pytest.mark.parametrize(
    ("how", "reason", "said"),
    [
        ("missing", "DISK_UNUSABLE", "No such file"),
        ("torn", "DISK_DAMAGED", "ends at byte"),
        ("foreign", "DISK_DAMAGED", "does not begin like an overlay"),
    ],
)
def test_an_overlay_that_is(daemon: RealDaemon, images: Path, how: str, reason: str, said: str) -> None:
    """missing, torn or foreign: refused with what to do; nothing is written to it, and the guest can be deleted."""
    guest = daemon.ok("create", "--name", "a", "--kernel", kernel("ticker.elf"), "--disk", "disk", "-o", "json").json
    disk = daemon.state_dir / "guests" / guest["uid"] / "disk0"
    damage(disk, how)
    before = disk.read_bytes() if disk.exists() else None
    found, message = refusal(daemon.hvctl("start", "a", "-o", "json"))
    assert (found, said in message) == (reason, True), message
    assert daemon.show("a")["state"] == "FAILED"
    assert (disk.read_bytes() if disk.exists() else None) == before
    daemon.ok("delete", "a")
    assert not disk.parent.exists()


def test_one_writer(daemon: RealDaemon, images: Path) -> None:
    guest = daemon.ok("create", "--name", "a", "--kernel", kernel("ticker.elf"), "--disk", "disk", "-o", "json").json
    disk = daemon.state_dir / "guests" / guest["uid"] / "disk0"
    holder = subprocess.Popen(["flock", "--exclusive", str(disk), "sh", "-c", "echo held; read _"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout and holder.stdin and holder.stdout.readline() == b"held\n"
    assert refusal(daemon.hvctl("start", "a", "-o", "json"))[0] == "DISK_IN_USE"
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    daemon.ok("start", "a")


def test_a_blob_that_is_gone(own_daemon: RealDaemon, tmp_path: Path) -> None:
    daemon = own_daemon
    daemon.ok("image", "import", "disk", str(disk_file(tmp_path / "disk")))
    daemon.ok("create", "--name", "a", "--kernel", kernel("ticker.elf"), "--disk", "disk")
    digest = daemon.ok("image", "list", "-o", "json").json["images"][0]["disk"].removeprefix("sha256:")
    (daemon.state_dir / "blobs" / "sha256" / digest).unlink()
    assert refusal(daemon.hvctl("start", "a", "-o", "json"))[0] == "BLOB_NOT_FOUND"
    daemon.ok("image", "import", "again", str(tmp_path / "disk"))  # the same bytes
    daemon.ok("start", "a")


# ---- sparse files, folders


SPARSE_BYTES = 512 << 20


def test_holes_cost_nothing(own_daemon: RealDaemon, tmp_path: Path) -> None:
    daemon = own_daemon
    file = tmp_path / "sparse"
    with file.open("wb") as sparse:
        sparse.truncate(SPARSE_BYTES)
        for offset in (0, SPARSE_BYTES // 2, SPARSE_BYTES - MIB):
            sparse.seek(offset)
            sparse.write(os.urandom(MIB // 2))
    began = time.monotonic()
    with file.open("rb") as sparse:
        hashlib.file_digest(sparse, "sha256")
    hashed = time.monotonic()
    daemon.ok("image", "import", "sparse", str(file), "--kind", "disk")
    took = time.monotonic() - hashed
    (blob,) = (daemon.state_dir / "blobs" / "sha256").iterdir()
    assert blob.stat().st_size == SPARSE_BYTES
    assert blob.stat().st_blocks * 512 < 4 * MIB
    assert subprocess.run(["cmp", str(file), str(blob)], check=False).returncode == 0
    assert took < 5 + 10 * (hashed - began), "read and hashed, a few times at most"
    daemon.ok("image", "import", "same", str(file), "--kind", "disk")  # it has the bytes already
    assert len(list((daemon.state_dir / "blobs" / "sha256").iterdir())) == 1


def test_a_folder_as_tar_and_as_disk(daemon: RealDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "etc" / "deep").mkdir(parents=True)
    (folder / "etc" / "name").write_text("hvd\n")
    (folder / "etc" / "deep" / "link").symlink_to("../name")
    os.link(folder / "etc" / "name", folder / "etc" / "same")
    (folder / "big").write_bytes(os.urandom(MIB))
    (folder / "big").chmod(0o4755)
    first = daemon.ok("image", "import", "tar", str(folder), "-o", "json").json
    assert (first["kind"], bool(first["rootfs"])) == ("rootfs", True)
    again = daemon.ok("image", "import", "tar-again", str(folder), "-o", "json").json
    assert again["rootfs"] == first["rootfs"], "the same files are the same bytes"
    blob = daemon.state_dir / "blobs" / "sha256" / first["rootfs"].removeprefix("sha256:")
    listing = subprocess.run(["tar", "-tvf", str(blob)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"^-rwsr-xr-x .* \./big$", listing, re.M), listing
    assert "link to ./etc/name" in listing and "./etc/deep/link -> ../name" in listing
    for source, name in ((str(folder), "a"), (str(blob), "b")):
        if name == "b" and os.geteuid():
            continue
        disk = daemon.ok("image", "import", f"disk-{name}", source, "--as", "disk", "--size", "64M", "-o", "json").json
        assert disk["kind"] == "disk" and disk["size_bytes"] == str(64 * MIB)
        file = daemon.state_dir / "blobs" / "sha256" / disk["disk"].removeprefix("sha256:")
        shown = subprocess.run(
            ["debugfs", "-R", "stat /big", str(file)], capture_output=True, text=True, check=True
        ).stdout
        assert "Mode:  04755" in shown and re.search(r"User: +0 ", shown), shown
        assert subprocess.run(["e2fsck", "-fn", str(file)], capture_output=True, check=False).returncode == 0
    small = daemon.hvctl("image", "import", "small", str(folder), "--as", "disk", "--size", "200K", "-o", "json")
    assert refusal(small)[0] == "PROGRAM_FAILED"

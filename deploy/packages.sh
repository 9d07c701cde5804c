#!/bin/sh
# Debian (and Ubuntu) packages for building, testing and measuring hvd. As root, installs what is missing; otherwise says what is
# missing and what that costs, and goes on: only a missing compiler or python3-venv stops the build, and says so by itself.
set -u
# command or file that shows that it is there : package : what for
needs="
gcc:gcc:the C parts and the guest programs
make:make:building
objcopy:binutils:the guest programs
python3-venv:python3-venv:the virtual environment
/bin/busybox:busybox-static:the initramfs of Linux guests
iasl:acpica-tools:tests of the ACPI tables
cpio:cpio:reading initramfs files in tests
flex:flex:hvctl image build linux
bison:bison:hvctl image build linux
bc:bc:hvctl image build linux
/usr/include/libelf.h:libelf-dev:hvctl image build linux (64 bit)
xz:xz-utils:hvctl image build linux
mmdebstrap:mmdebstrap:tests with a Debian on a disk
/usr/sbin/mkfs.ext4:e2fsprogs:hvctl image import --as disk
nft:nftables:networks with NAT
passt:passt:--network user
runc:runc:containers
conmon:conmon:containers
crun:crun:containers by --engine crun
strace:strace:measuring against strace
ip:iproute2:tests of networks
ping:iputils-ping:tests of networks
zstd:zstd:layers of images packed by zstd
gdb:gdb:hvctl gdb
qemu-system-x86_64:qemu-system-x86:measuring against QEMU
/usr/share/seabios/bios.bin:seabios:guests that boot from a disk or CD-ROM, pictures of the screen
/usr/lib/grub-rescue/grub-rescue-cdrom.iso:grub-rescue-pc:tests that boot from a disk and a CD-ROM
chromium:chromium:tests of the page of hvctl compare
/boot/memtest86+x64.bin:memtest86+:tests with memtest86+
"
missing= packages=
# These programs alone, without what else their packages bring (services, ...): unpacked below build/.
for tool in promtool:prometheus docker-registry:docker-registry linux.uml:user-mode-linux; do
    program=${tool%%:*} package=${tool#*:}
    if ! command -v "$program" >/dev/null 2>&1 && [ ! -x "build/tools/usr/bin/$program" ] && command -v apt-get >/dev/null; then
        mkdir -p build/tools
        (cd build/tools && apt-get download -q "$package" >/dev/null 2>&1 && dpkg-deb -x "$package"_*.deb . && rm -f "$package"_*.deb) ||
            echo "$program (Debian package $package) could not be fetched: the tests that need it will be skipped" >&2
    fi
done
old_ifs=$IFS
IFS='
'
for line in $needs; do
    probe=${line%%:*} rest=${line#*:}
    package=${rest%%:*} purpose=${rest#*:}
    case $probe in
        python3-venv) [ -d .venv ] || python3 -c 'import ensurepip, venv' 2>/dev/null ;;
        /*) [ -e "$probe" ] ;;
        *) command -v "$probe" >/dev/null 2>&1 ;;
    esac && continue
    missing="$missing  $package: $purpose
"
    packages="$packages $package"
done
IFS=$old_ifs
[ -n "$packages" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Debian packages:$packages"
    # One source that cannot be verified must not keep the others from working: the install itself decides.
    apt-get update -q >/dev/null 2>&1 || echo "apt-get update reported a problem; trying with what it has"
    # prometheus' own daemon must not start: only promtool is used.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages >/dev/null && exit 0
    echo "apt-get could not install all of:$packages" >&2
fi
printf 'Some things will not work here, because these packages are missing:\n%s' "$missing" >&2
echo "To have them: apt-get install$packages" >&2
exit 0

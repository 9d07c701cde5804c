#!/bin/sh
# A systemd as process 1 of namespaces of its own: boot_systemd.sh ROOT UNIT SHARED-DIRECTORY..., as root, from
#   unshare --pid --mount --cgroup --uts --ipc --net --fork --kill-child
# in control groups of its own, which become the roots of what it sees. Everything else is in memory below ROOT, /usr the host's and read-only.
set -eu
root=$1 unit=$2
shift 2

mount --make-rprivate /
mount -t tmpfs -o mode=755 root "$root"
cd "$root"
mkdir -p usr etc/systemd/system proc sys dev run var/lib var/cache var/log var/tmp tmp root
chmod 1777 tmp var/tmp
for name in bin sbin lib lib64 lib32; do
    if [ -L /$name ]; then cp -a /$name .; fi
done
mount --rbind /usr usr
mount -o remount,bind,ro usr
for name in passwd group shadow ld.so.cache ld.so.conf ld.so.conf.d nsswitch.conf alternatives os-release localtime; do
    if [ -e /etc/$name ]; then cp -a /etc/$name etc/; fi
done
: >etc/fstab
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
cp "$unit" etc/systemd/system/
# What would touch the host, or waits for what is not here.
for name in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service systemd-sysctl.service \
    systemd-modules-load.service systemd-random-seed.service systemd-update-utmp.service systemd-binfmt.service systemd-hwdb-update.service \
    systemd-firstboot.service proc-sys-fs-binfmt_misc.automount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-fs-fuse-connections.mount dev-hugepages.mount ldconfig.service; do
    ln -s /dev/null etc/systemd/system/$name
done
# Nothing is started but what every service depends on (basic.target), and what a test starts.
for directory; do
    mkdir -p ".$directory"
    mount --rbind "$directory" ".$directory"
done

mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm dev/net
# Made anew, not the host's own: systemd changes the mode of its console.
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 console:1:3 net/tun:10:200; do
    name=${device%%:*} numbers=${device#*:}
    mknod -m 666 "dev/$name" c "${numbers%:*}" "${numbers#*:}"
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount -t sysfs sysfs sys
# As the host has them: one hierarchy of version 2, or some of version 1 beside it.
if [ -e /sys/fs/cgroup/cgroup.procs ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
    for hierarchy in /sys/fs/cgroup/*/; do
        [ -e "${hierarchy}cgroup.procs" ] || continue
        name=$(basename "$hierarchy")
        mkdir "sys/fs/cgroup/$name"
        case $name in
            unified) mount -t cgroup2 cgroup2 "sys/fs/cgroup/$name" ;;
            systemd) mount -t cgroup -o none,name=systemd cgroup "sys/fs/cgroup/$name" ;;
            *) mount -t cgroup -o "$name" cgroup "sys/fs/cgroup/$name" ;;
        esac
    done
fi
mount -t tmpfs -o mode=755 run run
mkdir old
pivot_root . old
umount -l /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no

#!/bin/busybox sh
# Process 1 of the lab machine: the root file system of the machine that it runs on becomes its own,
# with all that is written there kept in memory.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module" || echo "cannot load $module"
done
ip link set lo up

share() {
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"
}

root=/mnt/root
mkdir -p /mnt/shared /mnt/changes $root
share root /mnt/shared ro,cache=loose
mount -t tmpfs -o size=50% changes /mnt/changes
mkdir /mnt/changes/upper /mnt/changes/work
mount -t overlay -o lowerdir=/mnt/shared,upperdir=/mnt/changes/upper,workdir=/mnt/changes/work root $root

mount -t proc proc $root/proc
mount -t sysfs sys $root/sys
mount -t bpf bpf $root/sys/fs/bpf
mount -t debugfs debug $root/sys/kernel/debug
mount -t tracefs trace $root/sys/kernel/tracing
mount -t devtmpfs dev $root/dev
mkdir -p $root/dev/pts $root/dev/shm $root/dev/hugepages
mount -t devpts pts $root/dev/pts
mount -t tmpfs shm $root/dev/shm
mount -t hugetlbfs hugepages $root/dev/hugepages
mount -t tmpfs run /run
mkdir /run/lock /run/out
share out /run/out cache=none
mount --rbind /run $root/run


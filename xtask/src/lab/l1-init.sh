#!/bin/busybox sh
# First process of the lab's host. Boots up to a line on ttyS0, where the snapshot is
# taken; then waits on ttyS1 for `UNIX-TIME TOKEN`, mounts, and runs /lab/command there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
while read -r module; do
    insmod "/modules/$module" || echo "lab: module $module is not in"
done </modules/order
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
hostname ocs-lab
stty -F /dev/ttyS1 raw -echo
echo "lab: ready"

read -r now token </dev/ttyS1
date -s "@$now" >/dev/null
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /host &&
    mount -t tmpfs tmpfs /memory &&
    mkdir /memory/upper /memory/work &&
    mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /new &&
    mkdir -p /new/lab /new/proc /new/sys /new/dev /new/run /new/tmp &&
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap work /new/lab || {
    echo "lab: mounting failed"
    echo "lab-exit $token 125" >/dev/ttyS1
}
mount -t tmpfs tmpfs /new/run
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
export TOKEN="$token" HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec switch_root /new /bin/sh -c '
    setsid -w sh /lab/command <>/dev/ttyS1 >&0 2>&0
    code=$?
    printf "\nlab-exit %s %s\n" "$TOKEN" "$code" >/dev/ttyS1
    while :; do sleep 1000; done'

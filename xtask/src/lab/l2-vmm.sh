#!/bin/busybox sh
# First and only process of the guest that the VMM's own tests boot in the lab. What it
# finds comes from the machine; each line of result begins with "stock:".
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
while read -r module; do
    insmod "/modules/$module" || echo "stock: module $module is not in"
done </modules/order
echo "stock: kernel=$(uname -r) cpus=$(grep -c ^processor /proc/cpuinfo)"

# Writes random bytes to a disk and reads them back past the page cache, twice at a time.
disk() {
    until [ -b "/dev/$1" ]; do sleep 0.1; done
    dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
    dd if=/tmp/data of="/dev/$1" bs=64k conv=fsync 2>/dev/null &
    dd if=/tmp/data of="/dev/$1" bs=4k seek=2048 conv=fsync 2>/dev/null
    wait
    echo 3 >/proc/sys/vm/drop_caches
    wrote=$(sha256sum </tmp/data | cut -d' ' -f1)
    for at in 0 128; do
        read=$(dd if="/dev/$1" bs=64k skip=$at count=64 2>/dev/null | sha256sum | cut -d' ' -f1)
        [ "$read" = "$wrote" ] || echo "stock: disk $1 MISMATCH at=$at"
    done
    echo "stock: disk $1 sectors=$(cat "/sys/block/$1/size") sha256=$wrote ok"
}

# Sends random bytes to the host's echo server and compares what comes back.
net() {
    until [ -e "/sys/class/net/$1" ]; do sleep 0.1; done
    ip link set "$1" up
    ip address add "10.9.$2.2/24" dev "$1"
    dd if=/dev/urandom of=/tmp/sent bs=64k count=32 2>/dev/null
    until nc "10.9.$2.1" 9000 </tmp/sent >/tmp/back && [ -s /tmp/back ]; do sleep 0.2; done
    sent=$(sha256sum </tmp/sent | cut -d' ' -f1)
    [ "$sent" = "$(sha256sum </tmp/back | cut -d' ' -f1)" ] || echo "stock: net $1 MISMATCH"
    echo "stock: net $1 bytes=$(wc -c </tmp/back) sha256=$sent ok"
}

disk vda &
net eth0 0
wait
echo "stock: interrupts $(grep virtio /proc/interrupts | tr -s ' ' | tr '\n' ';')"
echo "stock: ready"

# What comes and goes later.
if ! grep -q hotplug=none /proc/cmdline; then
    disk vdb
    while [ -e /sys/block/vdb ]; do sleep 0.1; done
    echo "stock: vdb gone"
    net eth1 1
    while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done
    echo "stock: eth1 gone"
fi

if grep -q reboot=test /proc/cmdline; then
    echo "stock: reboot"
    reboot -f
fi
# A press of the power key is an input event, for those who listen when it comes.
exec 3</dev/input/event0
echo "stock: waiting for the button"
head -c 24 <&3 >/dev/null
echo "stock: button"
poweroff -f

#!/bin/busybox sh
# First and only process of the guest that the VMM's own tests boot in the lab. What it
# finds comes from the machine; each line of result begins with "stock:".
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
if grep -qw boot=test /proc/cmdline; then
    echo "stock: userland"
    while :; do sleep 1000; done
fi
while read -r module; do
    insmod "/modules/$module" || echo "stock: module $module is not in"
done </modules/order
echo "stock: kernel=$(uname -r) cpus=$(grep -c ^processor /proc/cpuinfo)"

# While the machine is saved, restored, cloned and moved.
if grep -q moves=test /proc/cmdline; then
    cat >/bin/network <<'SCRIPT'
#!/bin/busybox sh
ip link set eth0 up && ip address add 172.31.0.5/20 dev eth0
SCRIPT
    chmod +x /bin/network
    until [ -e /sys/class/net/eth0 ] && [ -b /dev/vda ]; do sleep 0.1; done
    network
    exec 3</dev/input/event0
    moves /dev/vda 172.31.0.1:7777 &
    head -c 24 <&3 >/dev/null
    echo "stock: button"
    poweroff -f
fi

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

# Sockets both ways, entropy and the second console, with a balloon that comes and goes.
sockets() {
    dd if=/dev/urandom of=/tmp/vsock bs=64k count=32 2>/dev/null
    sent=$(sha256sum </tmp/vsock | cut -d' ' -f1)
    for turn in 1 2 3; do
        back=$(vsock send 9000 </tmp/vsock | sha256sum | cut -d' ' -f1)
        [ "$back" = "$sent" ] || echo "stock: vsock MISMATCH"
    done
    echo "stock: vsock bytes=$(wc -c </tmp/vsock) sha256=$sent ok"
    vsock serve 9001
    echo "stock: vsock served"
}
hosted() {
    echo "stock: load"
    sockets &
    echo "stock: rng $(cat /sys/class/misc/hw_random/rng_current) bytes=$(head -c 65536 /dev/hwrng | wc -c)"
    read -r line <&3
    echo "stock: heard $line"
    dd if=/dev/zero of=/tmp/fill bs=1M count=64 2>/dev/null
    rm /tmp/fill
    wait
    echo "stock: hosted"
}
if grep -q hosted=test /proc/cmdline; then
    # Two consoles share the host's ring, byte by byte: one is silent while the other speaks
    # (stty waits until what was written is out). Opened once, because what comes in while a
    # terminal is shut is dropped with it.
    stty -echo -F /dev/console
    exec 3<>/dev/hvc0
    stty -echo -F /dev/hvc0
    echo "stock: second console" >&3
    hosted &
fi
disk vda &
net eth0 0
wait
echo "stock: interrupts $(grep virtio /proc/interrupts | tr -s ' ' | tr '\n' ';')"
echo "stock: ready"

if grep -q hosted=test /proc/cmdline; then
    head -c 24 /dev/input/event0 >/dev/null
    poweroff -f
fi

# What comes and goes later.
if ! grep -q hotplug=none /proc/cmdline; then
    disk vdb
    while [ -e /sys/block/vdb ]; do sleep 0.1; done
    echo "stock: vdb gone"
    net eth1 1
    while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done
    echo "stock: eth1 gone"
fi

if grep -q end=reboot /proc/cmdline; then
    echo "stock: reboot"
    reboot -f
fi
# A press of the power key is an input event, for those who listen when it comes.
exec 3</dev/input/event0
echo "stock: waiting for the button"
head -c 24 <&3 >/dev/null
echo "stock: button"
poweroff -f

#!/bin/busybox sh
# First and only process of the guest that QEMU boots in front of storaged. Lines of result
# begin with "fio:".
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
while read -r module; do
    insmod "/modules/$module" || echo "fio: module $module is not in"
done </modules/order
until [ -b /dev/vda ]; do sleep 0.1; done
echo "fio: kernel=$(uname -r) queues=$(ls /sys/block/vda/mq | wc -l) sectors=$(cat /sys/block/vda/size)"
common="--filename=/dev/vda --direct=1 --ioengine=libaio --thread --verify=crc32c --verify_fatal=1"
verified() {
    name=$1
    shift
    # shellcheck disable=SC2086
    if fio --name="$name" $common "$@" >/tmp/log 2>&1; then
        echo "fio: $name verified"
    else
        cat /tmp/log
        echo "fio: $name FAILED"
    fi
}
verified small --rw=randwrite --bs=4k --iodepth=16 --size=4m
verified mixed --rw=randwrite --bsrange=512-128k --blockalign=512 --iodepth=16 --size=16m --offset=4m
echo "fio: now storaged may die"
verified killed --rw=randwrite --bs=16k --iodepth=8 --size=24m --offset=20m --fsync=16
blkdiscard -o 0 -l 1048576 /dev/vda
left=$(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | tr -d '\0' | wc -c)
echo "fio: discarded, $left bytes left"
echo "fio: done"
poweroff -f

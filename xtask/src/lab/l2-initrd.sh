#!/bin/busybox sh
# Initial RAM disk of the lab's stock guest, as a distribution's: drivers in, root on.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "stock: initrd"
while read -r module; do
    insmod "/modules/$module"
done </modules/order
until [ -b /dev/vda ]; do sleep 0.1; done
echo "stock: first disk serial=$(cat /sys/block/vda/serial) sectors=$(cat /sys/block/vda/size)"
mount -t ext4 /dev/vda /new || poweroff -f
umount /proc /sys
mount --move /dev /new/dev
exec switch_root /new /sbin/init

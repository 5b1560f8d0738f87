#!/bin/busybox sh
# First process of the lab's stock guest: address by DHCP, user data by IMDSv2, and the
# user data, a shell script, is run. Each line of result begins with "stock:".
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mount -o remount,rw /
echo "stock: kernel $(uname -r)"
echo "stock: root $(grep ' / ' /proc/mounts)"
ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -n -q -t 20 -T 2 -s /bin/dhcp-script || echo "stock: no DHCP answer"

metadata() { # METHOD PATH HEADER
    printf '%s %s HTTP/1.1\r\nHost: 169.254.169.254\r\n%s\r\nConnection: close\r\n\r\n' "$1" "$2" "$3" |
        nc -w 20 169.254.169.254 80 | sed '1,/^\r*$/d'
}
token=$(metadata PUT /latest/api/token "X-aws-ec2-metadata-token-ttl-seconds: 300")
header="X-aws-ec2-metadata-token: $token"
echo "stock: instance-id $(metadata GET /latest/meta-data/instance-id "$header")"
metadata GET /latest/user-data "$header" >/tmp/user-data
echo "stock: user-data $(wc -c </tmp/user-data) bytes"
sh /tmp/user-data
echo "stock: end"
sync
while :; do sleep 1000; done

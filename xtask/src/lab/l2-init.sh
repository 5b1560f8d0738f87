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

# busybox wget has no PUT; a server may drop a client that closes its side early, hence
# the pause.
token=$({
    printf 'PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n'
    printf 'X-aws-ec2-metadata-token-ttl-seconds: 300\r\nConnection: close\r\n\r\n'
    sleep 2
} | nc 169.254.169.254 80 | tr -d '\r' | sed '1,/^$/d')
metadata() {
    wget -q -O - --header "X-aws-ec2-metadata-token: $token" "http://169.254.169.254/latest/$1"
}
echo "stock: instance-id $(metadata meta-data/instance-id)"
metadata user-data >/tmp/user-data
echo "stock: user-data $(wc -c </tmp/user-data) bytes"
sh /tmp/user-data
echo "stock: end"
sync
while :; do sleep 1000; done

#!/bin/busybox sh
# What udhcpc calls with what it learned.
[ "$1" = bound ] || exit 0
ip link set "$interface" mtu "${mtu:-1500}"
ip address add "$ip/$mask" dev "$interface"
ip route add default via "${router%% *}" dev "$interface"
echo "nameserver ${dns%% *}" >/tmp/resolv.conf
echo "stock: dhcp address=$ip/$mask router=$router mtu=${mtu:-none}"

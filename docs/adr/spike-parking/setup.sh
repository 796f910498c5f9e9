#!/bin/sh
# Namespaces, parking device and packet rules of the spike: `setup.sh up`, `setup.sh down`.
# `setup.sh park DEV`, inside st-host, makes DEV a parking device: ask user space only, for as long as it takes, nothing on the wire.
if [ "$1" = park ]; then
  for f in ipv4 ipv6; do n=net.$f.neigh.$2; sysctl -qw $n.app_solicit=1000000 $n.mcast_solicit=0 $n.ucast_solicit=0 \
    $n.mcast_resolicit=0 $n.retrans_time_ms=1000 $n.unres_qlen_bytes=67108864 || exit 1; done
  exit 0
fi
ip netns del st-host 2>/dev/null; ip netns del st-cli 2>/dev/null
[ "$1" = down ] && exit 0
set -e
ip netns add st-host; ip netns add st-cli
h() { ip netns exec st-host "$@"; }; c() { ip netns exec st-cli "$@"; }
h ip link set lo up; c ip link set lo up
h ip link add h0 type veth peer name c0 netns st-cli
h ip addr add 10.99.0.1/24 dev h0; h ip addr add fd99::1/64 dev h0 nodad; h ip link set h0 up
for i in 0 1 2 3 4 5 6 7; do c ip addr add 10.99.0.1$i/24 dev c0; c ip addr add fd99::1$i/64 dev c0 nodad; done
c ip link set c0 up; c ip route add default via 10.99.0.1; c ip -6 route add default via fd99::1
h sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 "net.ipv4.ping_group_range=0 0"
c sysctl -qw "net.ipv4.ping_group_range=0 0"
# The parking device. What leaves by p0 comes back in by p1 and is routed again.
h ip link add p0 type veth peer name p1; h ip link set p1 address 02:d0:00:00:00:fe
for d in p0 p1; do h sysctl -qw net.ipv6.conf.$d.addr_gen_mode=1 net.ipv6.conf.$d.accept_dad=0; h ip link set $d up; done
h sh "$0" park p0
# rp_filter: the source's way back is not p1. accept_local: a client on the host itself has a local source.
h sysctl -qw net.ipv4.conf.p1.rp_filter=0 net.ipv4.conf.p1.accept_local=1
# A packet re-entering at p1 was tracked (and translated) on its first pass: a second entry would clash with the first.
# (`NOTRACK= ./run.sh` leaves the rule out.) p1 to p0 would be a loop; it can only happen when a release comes before the tap's route.
h nft -f - <<N
table inet t {
  chain c_raw { type filter hook prerouting priority raw; ${NOTRACK-iifname \"p1\" notrack;} }
  chain c_dnat { type nat hook prerouting priority dstnat;
    ip daddr 10.99.0.1 tcp dport 17000 dnat ip to 10.78.1.10:7000; ip daddr 10.99.0.1 udp dport 17001 dnat ip to 10.78.1.10:7001
    ip6 daddr fd99::1 tcp dport 17000 dnat ip6 to [fd78:0:0:1::10]:7000; ip6 daddr fd99::1 udp dport 17001 dnat ip6 to [fd78:0:0:1::10]:7001; }
  chain c_snat { type nat hook postrouting priority srcnat; oifname "h0" ip saddr 10.78.0.0/16 masquerade; oifname "h0" ip6 saddr fd78::/16 masquerade; }
  chain c_fwd { type filter hook forward priority filter; iifname "p1" oifname "p0" counter drop; ct state established,related counter accept; ct state new counter accept; }
}
N

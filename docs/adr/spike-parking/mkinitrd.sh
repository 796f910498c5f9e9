#!/bin/sh
# mkinitrd.sh MODULES OUT: our /init, busybox, and the virtio modules of the guest kernel (a tree that holds its .ko files).
set -e
cd "$(dirname "$0")"; K=$1; OUT=$2; R=$(mktemp -d)
mkdir -p "$R/bin" "$R/mod" "$R/proc" "$R/sys" "$R/dev"
gcc -O2 -static -Wall -o "$R/init" init.c
cp /usr/bin/busybox "$R/bin/"
for m in virtio_ring virtio virtio_mmio virtio_blk failover net_failover virtio_net virtio_console virtio-rng; do
  find "$K" -name "$m.ko" -exec cp {} "$R/mod/" \;
done
mknod "$R/dev/console" c 5 1   # without it PID 1 has no stdout before devtmpfs is mounted
(cd "$R" && find . | cpio -o -H newc --quiet | gzip -1) > "$OUT"; rm -r "$R"

#!/bin/sh
# All measurements. KERNEL, INITRD (mkinitrd.sh) and TSC_KHZ (the host's: a wrong one hangs or skews an emulated guest) in the environment.
cd "$(dirname "$0")" || exit 1
for m in ${MODES:-tap shared}; do
  ./setup.sh up && nice -n -5 target/release/spike-parking "$m" "${SINGLES:-20}" "${STORMS:-10}"
  ./setup.sh down; rm -rf /dev/shm/spike-parking
done
[ -z "$EXTRAS" ] || { ./setup.sh up; python3 extras.py; python3 extras.py memory; ./setup.sh down; }

#!/bin/busybox sh
# First process of the guest. Its environment has MODE (capture mode to demand) and PACKETS (how many to send). The
# second serial port is where results go, in sections that check.py reads; the kernel's messages are on the first.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /data
stty -F /dev/ttyS1 raw
exec >/dev/ttyS1 2>&1

section() { echo "=== $1"; }

end() {
  section log
  cat /tmp/taphouse.log
  # The port has sent everything before the machine goes.
  stty -F /dev/ttyS1 raw
  poweroff -f
}

die() {
  section failed
  echo "$*"
  end
}

# wait_for SECONDS COMMAND...: true as soon as the command is.
wait_for() {
  left=$(($1 * 5))
  shift
  until "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || return 1
    sleep 0.2
  done
}

is_ready() { grep -q '^taphouse: ready' /tmp/taphouse.log || ! kill -0 "$taphouse" 2>/dev/null; }
has_ended() { ! kill -0 "$taphouse" 2>/dev/null; }

# All packets of all queues are in the ledger.
has_arrived() {
  taphouse status --output json >/tmp/status.json 2>/tmp/status.err || return 1
  offered=$(awk -F: '/"offered"/ { sum += $2 } END { print sum + 0 }' /tmp/status.json)
  [ "$offered" -ge "$PACKETS" ]
}

for module in /modules/*.ko; do
  insmod "$module" || die "cannot load $module"
done
ip link set lo up
for interface in eth0 eth1; do
  ip link set "$interface" up || die "no $interface"
done
section guest
echo "$(uname -r) $(basename "$(readlink -f /sys/class/net/eth1/device/driver)")"

: >/tmp/taphouse.log
taphouse run -i eth1 --data-dir /data --set "capture.mode=$MODE" --set capture.ring=64MiB --set capture.frame=2048 \
  --set storage.retention.min_free=null 2>/tmp/taphouse.log &
taphouse=$!
wait_for 60 is_ready || die "taphouse is not ready after 60 s"
has_ended && die "taphouse ended before it was ready"

section sent
send eth0 "$PACKETS" || die "not all packets were sent"
wait_for 40 has_arrived
section status
cat /tmp/status.json /tmp/status.err

kill -INT "$taphouse"
wait_for 30 has_ended || die "taphouse did not stop within 30 s"
section flows
taphouse sql --data-dir /data --output json \
  "SELECT count(*) AS flows, sum(pkts_o) AS packets, sum(bytes_o) AS ip_bytes, sum(bytes_o * src_port) AS port_bytes FROM flows"
section end
end

#!/usr/bin/env bash
# Boots a guest whose virtio NICs can do zero-copy AF_XDP, sends known packets from one NIC to the other, and checks
# that taphouse received each of them with zero-copy in force. See README.md.
#
#   tests/zerocopy/run.sh [MODE]     MODE: zerocopy (default), or copy, generic to compare with
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

mode=${1:-zerocopy}
case $mode in
  zerocopy | copy | generic) ;;
  *) echo "unknown mode '$mode'; known are zerocopy, copy and generic" >&2; exit 2 ;;
esac
# Fewer than the frames of a queue (64 MiB / 2048 bytes), so that no packet can find all of them in use, however slow
# the emulated worker is.
packets=20000
# Seconds after which the guest is ended.
guest_max=${ZEROCOPY_GUEST_MAX:-110}
cache=${TAPHOUSE_CI_CACHE:-$HOME/.cache/taphouse}/zerocopy
suite=trixie-backports
meta_package=linux-image-cloud-amd64

say() { printf '%s\n' "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
# Not a failure of taphouse: this machine cannot run the test.
skip() {
  echo "SKIPPED: $*"
  if [ "${REQUIRE_ZEROCOPY:-}" = 1 ]; then
    say "REQUIRE_ZEROCOPY=1 makes that a failure"
    exit 1
  fi
  exit 0
}

work=$(mktemp -d "${TMPDIR:-/tmp}/taphouse-zerocopy.XXXXXX")
guest=
finish() {
  if [ -n "$guest" ]; then
    # timeout(1) passes it on to QEMU.
    kill "$guest" 2>/dev/null || true
    wait "$guest" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

find_taphouse() {
  local target=${CARGO_TARGET_DIR:-$root/target} candidate
  for candidate in ${TAPHOUSE:+"$TAPHOUSE"} "$target/debug/taphouse" "$target/release/taphouse"; do
    if [ -x "$candidate" ]; then
      taphouse=$candidate
      return
    fi
    [ -z "${TAPHOUSE:-}" ] || break
  done
  fail "no binary at ${TAPHOUSE:-$target/debug/taphouse}: build one with 'cargo build', or name it in TAPHOUSE"
}

# Debian packages of the programs that are not here.
host_packages() {
  local need=()
  command -v qemu-system-x86_64 >/dev/null || need+=(qemu-system-x86)
  # Any build of busybox will do; its libraries come along.
  command -v busybox >/dev/null || need+=(busybox-static)
  command -v cpio >/dev/null || need+=(cpio)
  command -v xz >/dev/null || need+=(xz-utils)
  command -v zstd >/dev/null || need+=(zstd)
  command -v strip >/dev/null || need+=(binutils)
  ((${#need[@]})) || return 0
  command -v apt-get >/dev/null || skip "needs ${need[*]}, and there is no apt-get to install them with"
  [ "$(id -u)" = 0 ] || skip "needs the packages ${need[*]}; as root this script installs them"
  say "installing ${need[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"; } \
    >"$work/apt.log" 2>&1 || { tail -n 5 "$work/apt.log" >&2; skip "cannot install ${need[*]}"; }
}

# apt with one source of our own and folders of our own; proxies and mirrors as on this machine, whose apt stays as it is.
own_apt() {
  local program=$1
  shift
  "$program" -o Dir::Etc::SourceList="$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt" -o APT::Sandbox::User= \
    -o APT::Architecture=amd64 -o APT::Architectures::=amd64 "$@"
}

# The mirror of Debian proper that this machine's apt uses: neither security nor anybody else's repository.
debian_mirror() {
  # shellcheck disable=SC2016  # apt expands these
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    awk -F'|' '($1 == "Debian" && $2 == "Debian") || ($1 !~ /./ && $3 ~ /\/debian\/?$/) { print $3; exit }'
}

# First dependency of a package whose name matches.
dependencies() {
  own_apt apt-cache depends "$1" | sed -n 's/^ *Depends: //p' | grep -E "$2" || true
}

# The newest kernel for virtual machines, with its modules, in $cache/kernel.
fetch_kernel() {
  local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg image parts
  if [ -e "$cache/kernel/complete" ]; then
    return
  fi
  command -v apt-get >/dev/null || skip "the guest's kernel comes from Debian, and there is no apt-get"
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || skip "the guest's kernel comes from Debian, and this machine's apt knows no mirror of it"
  mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$work/debs"
  echo "deb $([ ! -e $keyring ] || echo "[signed-by=$keyring]") $mirror $suite main" >"$work/apt/sources.list"
  own_apt apt-get update -qq -o APT::Update::Error-Mode=any >"$work/apt.log" 2>&1 ||
    { tail -n 3 "$work/apt.log" >&2; skip "cannot read the package list of $suite"; }
  # Meta-package, image of one version, and since 6.19 its parts: binary and modules.
  image=$(dependencies "$meta_package" '^linux-image-' | head -n 1)
  [ -n "$image" ] || skip "$suite has no $meta_package"
  mapfile -t parts < <(dependencies "$image" '^linux-(binary|modules)-')
  [ ${#parts[@]} -gt 0 ] || parts=("$image")
  say "fetching ${parts[*]}"
  (cd "$work/debs" && own_apt apt-get download -qq "${parts[@]}") >"$work/apt.log" 2>&1 ||
    { tail -n 3 "$work/apt.log" >&2; skip "cannot download ${parts[*]}"; }
  rm -rf "$cache/kernel"
  mkdir -p "$cache/kernel"
  for part in "$work"/debs/*.deb; do
    dpkg-deb -x "$part" "$cache/kernel"
  done
  touch "$cache/kernel/complete"
}

# A module in plain form, on standard output.
module() {
  case $1 in
    *.xz) xz -dc "$1" ;;
    *.zst) zstd -dcq "$1" ;;
    *) cat "$1" ;;
  esac
}

# Puts a module and what it depends on into the guest, numbered in the order of loading. One that is no file is built in.
add_module() {
  local name=$1 file dependency before
  file=$(find "$cache/kernel" \( -name "$name.ko" -o -name "$name.ko.xz" -o -name "$name.ko.zst" \) -print -quit)
  if [ -z "$file" ] || compgen -G "$work/root/modules/*-$name.ko" >/dev/null; then
    return 0
  fi
  for dependency in $(module "$file" | tr '\0' '\n' | sed -n 's/^depends=//p' | tr ',' ' '); do
    add_module "$dependency"
  done
  before=("$work"/root/modules/*)
  module "$file" >"$work/root/modules/$(printf %02d ${#before[@]})-$name.ko"
}

# Puts a program into the guest's /bin, and the libraries it is linked to where it looks for them.
add_program() {
  local program=$1 name=$2 library
  strip -o "$work/root/bin/$name" "$program" 2>/dev/null || cp -L "$program" "$work/root/bin/$name"
  for library in $(ldd "$program" 2>/dev/null | grep -o '/[^ ]*'); do
    mkdir -p "$work/root$(dirname "$library")"
    cp -L "$library" "$work/root$library"
  done
}

build_initramfs() {
  mkdir -p "$work/root"/{bin,data,dev,modules,proc,sys,tmp}
  add_program "$(command -v busybox)" busybox
  add_program "$taphouse" taphouse
  rustc --edition 2024 -O -o "$work/send" "$here/send.rs" || fail "send.rs does not compile"
  add_program "$work/send" send
  for name in failover net_failover virtio_net; do
    add_module "$name"
  done
  cp "$here/init.sh" "$work/root/init"
  chmod 755 "$work/root/init"
  # Not compressed: the emulated CPU would take longer to unpack it than to read it.
  (cd "$work/root" && find . | cpio -o -H newc --quiet) >"$work/initramfs"
}

# Both NICs on one hub, so that each receives what the other sends; nothing leads out of it. Zero-copy needs receive
# queues that can be reset one by one and a device that does DMA through the kernel's API. Offloads that merge segments
# exclude XDP.
boot() {
  local kernel nic
  kernel=$(find "$cache/kernel" -name 'vmlinuz*' -print -quit)
  [ -n "$kernel" ] || fail "no kernel in $cache/kernel: remove that folder and try again"
  nic=disable-legacy=on,iommu_platform=on,queue_reset=on,mrg_rxbuf=on
  nic+=,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off
  # In the background, so that signals are handled while it runs. The words in capitals are init's environment;
  # no_timer_check: on a busy host the emulated timer is late, and the kernel would take it for broken.
  timeout -k 5 "$guest_max" qemu-system-x86_64 \
    -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nodefaults -display none -no-reboot \
    -kernel "$kernel" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet panic=-1 no_timer_check ipv6.disable=1 MODE=$mode PACKETS=$packets" \
    -serial "file:$work/console" -serial "file:$work/results" \
    -netdev hubport,id=h0,hubid=0 -device "virtio-net-pci,netdev=h0,mac=02:00:00:00:00:10,$nic" \
    -netdev hubport,id=h1,hubid=0 -device "virtio-net-pci,netdev=h1,mac=02:00:00:00:00:11,$nic" \
    </dev/null >"$work/qemu.log" 2>&1 &
  guest=$!
  local code=0
  wait "$guest" || code=$?
  guest=
  if [ "$code" != 0 ]; then
    tail -n 40 "$work/console" "$work/qemu.log" >&2 || true
    [ "$code" != 124 ] || fail "the guest did not end within $guest_max s"
    fail "QEMU ended with code $code"
  fi
}

[ "$(uname -sm)" = "Linux x86_64" ] || skip "the guest runs binaries of this machine, which is not Linux on x86-64"
command -v python3 >/dev/null || skip "needs python3"
command -v rustc >/dev/null || skip "needs rustc"
find_taphouse
mkdir -p "$cache"
# One run at a time installs and downloads.
exec 9>"$cache/lock"
flock 9
host_packages
fetch_kernel
exec 9>&-
build_initramfs
prepared=$SECONDS
boot
if ! python3 "$here/check.py" "$work/results" --mode "$mode" --packets "$packets" --prepared "$prepared" --took "$SECONDS"; then
  say "--- the guest's console, and QEMU"
  tail -n 60 "$work/console" "$work/qemu.log" >&2 || true
  exit 1
fi

#!/usr/bin/env bash
# Installs what tests of images and of nodes need: Debian packages (as root, only those that are missing), and
# the newest qemu-img that Debian has for this release (its backports), unpacked into the cache and
# not installed. That one is the oracle the tests compare with.
# Usage: install.sh        Afterwards $CACHE/bin has qemu-img, qemu-io and qemu-nbd.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PACKAGES=(
  qemu-utils qemu-system-x86 # conversion; the machine that boots the test disks
  mmdebstrap extlinux busybox-static kmod cpio # the Debian test disk
  fdisk util-linux e2fsprogs # partitions, file systems, namespaces
  curl # the data API is tested with it
  gzip bzip2 xz-utils zstd # compressed images
  runc nftables iproute2 procps # nodes of Kubernetes: containers, services, cables
  python3 # run.py, bench.py, the maker of hostile files: json, bz2 and lzma are not in python3-minimal
)
ORACLES=(qemu-img qemu-io qemu-nbd)

# Writes the wrapper of program $1, which finds its libraries next to it, wherever the cache is.
write_wrapper() {
  cat >"$2/$1" <<'WRAPPER'
#!/bin/sh
self=$(readlink -f "$0")
root=${self%/bin/*}/root
libs=$root/usr/lib/x86_64-linux-gnu
LD_LIBRARY_PATH=$libs:$root/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
QEMU_MODULE_DIR=$libs/qemu
export LD_LIBRARY_PATH QEMU_MODULE_DIR
exec "$root/usr/bin/${0##*/}" "$@"
WRAPPER
  chmod 755 "$2/$1"
}

# Downloads qemu-utils of the backports with what it needs and this machine lacks, and unpacks it.
unpack_backport() {
  local work=$1 code package program
  code=$(debian_codename)
  private_apt_setup "$work/apt" "$code" "$code-backports"
  private_apt "$work/apt" install -qq -y --download-only -t "$code-backports" qemu-utils >&2
  for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
  mkdir "$work/bin"
  for program in "${ORACLES[@]}"; do write_wrapper "$program" "$work/bin"; done
  rm -rf "$work/apt"
}

install_oracle() {
  local final=$CACHE/qemu-bpo work program
  if [[ ! -x $final/bin/qemu-img ]]; then
    say "fetching the newest qemu-img from this release's backports into $final"
    work=$(work_folder "$final")
    unpack_backport "$work"
    "$work/bin/qemu-img" --version >&2
    mv -T "$work" "$final"
  fi
  mkdir -p "$CACHE/bin"
  # Not made again each time: ln removes before it makes, and another run may be using them.
  for program in "${ORACLES[@]}"; do
    [[ -x $CACHE/bin/$program ]] || ln -sfn "../qemu-bpo/bin/$program" "$CACHE/bin/$program"
  done
}

lock install
install_packages "${PACKAGES[@]}"
install_oracle
say "ready: $("$CACHE/bin/qemu-img" --version | head -n 1)"

#!/usr/bin/env bash
# Makes a small bootable Debian disk from packages, the same disk in every dress the tests need
# (qcow2 of several kinds, compressed raw), and takes an ISO out of a Debian package.
# Usage: debian-disk.sh      Prints the folder; it is made once per version of this script.
# Every *.qcow2 and disk.raw.* there holds exactly the bytes of disk.raw. boot.sh boots them.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$HERE/lib.sh"

PARTITION_MIB=319 # with the MiB before it for the boot record: a disk of 320 MiB
MODULES=(virtio_pci virtio_blk virtio_scsi sd_mod ata_piix nvme ext4) # disks it may be given
FINAL=$CACHE/images/debian-$(sha256sum <"$HERE/debian-disk.sh" | cut -c1-12)

# The essential packages of this machine's Debian release, unpacked and set up, as a tar.
make_root() {
  say "packages: the essential set, with mmdebstrap"
  TMPDIR=$1 mmdebstrap --quiet --mode=root --variant=essential --include=busybox-static \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='force-unsafe-io' \
    "$(debian_codename)" "$1/root.tar" "deb $(debian_keys) $(debian_mirror) $(debian_codename) main"
}

# The kernel, unpacked under kernel/, and the ISO: taken out of their packages, not installed.
fetch_packages() {
  local work=$1 apt=$1/apt kernel
  say "packages: the cloud kernel and the rescue ISO"
  private_apt_setup "$apt" "$(debian_codename)"
  kernel=$(private_apt "$apt" install --simulate linux-image-cloud-amd64 |
    awk '$1 == "Inst" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
  [[ -n $kernel ]] || die "linux-image-cloud-amd64 names no kernel package"
  (cd "$work" && private_apt "$apt" download -qq "$kernel" grub-rescue-pc)
  dpkg-deb -x "$work"/linux-image-*.deb "$work/kernel"
  dpkg-deb --fsys-tarfile "$work"/grub-rescue-pc_*.deb |
    tar -xO ./usr/lib/grub-rescue/grub-rescue-cdrom.iso >"$work/out/grub-rescue.iso"
}

# First program of the guest: loads the disk's drivers, then goes over to the disk.
write_initrd_init() {
  cat >"$1" <<'INIT'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
tries=0
while [ $tries -lt 100 ]; do
  for disk in /dev/vda1 /dev/sda1 /dev/nvme0n1p1; do
    if [ -b $disk ] && mount -t ext4 -o ro $disk /mnt; then
      umount /proc /sys
      mount -o move /dev /mnt/dev
      exec switch_root /mnt /sbin/init
    fi
  done
  tries=$((tries + 1))
  sleep 0.1
done
echo "no disk with a Debian root found"
poweroff -f
INIT
}

# init of the disk: proves on the serial console that Debian runs and that the disk reads right.
write_disk_init() {
  cat >"$1" <<'INIT'
#!/bin/bash
busybox mount -t proc proc /proc
. /etc/os-release
verdict=bad
(cd /opt/vitrine && sha256sum --quiet --check SHA256SUMS) && verdict=good
echo "VITRINE-GUEST-BOOTED content=$verdict os='$PRETTY_NAME' kernel=$(uname -r)" >/dev/ttyS0
busybox poweroff -f
INIT
}

make_initrd() {
  local work=$1 root=$1/initrd version applet path
  version=$(basename "$work"/kernel/lib/modules/*)
  mkdir -p "$root"/{bin,proc,sys,dev,mnt,modules}
  cp /bin/busybox "$root/bin/busybox"
  for applet in sh mount umount insmod cat sleep switch_root poweroff; do
    ln -s busybox "$root/bin/$applet"
  done
  depmod -b "$work/kernel" "$version"
  modprobe -d "$work/kernel" -S "$version" --show-depends -a "${MODULES[@]}" |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/modules"
  while read -r path; do
    cp "$path" "$root/modules/"
    basename "$path" >>"$root/modules/order"
  done <"$work/modules"
  write_initrd_init "$root/init"
  chmod 755 "$root/init"
  (cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet | gzip -1) >"$work/initrd.img"
}

# Puts what makes the mounted root $2 boot into it.
fill_root() {
  local work=$1 root=$2
  tar -C "$root" -xf "$work/root.tar"
  mkdir -p "$root/boot/extlinux" "$root/opt/vitrine"
  cp "$work"/kernel/boot/vmlinuz-* "$root/boot/vmlinuz"
  cp "$work/initrd.img" "$root/boot/initrd.img"
  printf '%s\n' 'DEFAULT debian' 'PROMPT 0' 'TIMEOUT 1' 'LABEL debian' 'LINUX /boot/vmlinuz' \
    'INITRD /boot/initrd.img' 'APPEND console=ttyS0 quiet panic=-1' >"$root/boot/extlinux/extlinux.conf"
  rm -f "$root/sbin/init"
  write_disk_init "$root/sbin/init"
  chmod 755 "$root/sbin/init"
  head -c 4M /dev/urandom >"$root/opt/vitrine/random"
  (cd "$root/opt/vitrine" && sha256sum random >SHA256SUMS)
  extlinux --install "$root/boot/extlinux" 2>&1
}

make_disk() {
  local work=$1 disk=$1/out/disk.raw part=$1/part.ext4
  say "disk: partition, file system, boot loader"
  truncate -s "${PARTITION_MIB}M" "$part"
  # extlinux reads neither 64-bit block numbers nor a checksum seed.
  mke2fs -q -t ext4 -O '^metadata_csum_seed,^64bit' -m 0 -L debian "$part"
  mkdir "$work/mnt"
  mount -o loop "$part" "$work/mnt"
  fill_root "$work" "$work/mnt"
  umount "$work/mnt"
  truncate -s "$((PARTITION_MIB + 1))M" "$disk"
  echo '2048,,83,*' | sfdisk -q "$disk"
  dd if=/usr/lib/EXTLINUX/mbr.bin of="$disk" conv=notrunc status=none
  dd if="$part" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
}

convert() {
  local name=$1
  shift
  qemu-img convert -f raw -O qcow2 -m 16 -W "$@" disk.raw "$name"
}

# A qcow2 with an internal snapshot that differs from the disk, which is again that of disk.raw.
convert_with_snapshot() {
  head -c 64K disk.raw >../first
  convert snapshot.qcow2
  qemu-io -f qcow2 -c 'write -q -P 170 0 64k' snapshot.qcow2
  qemu-img snapshot -c before snapshot.qcow2
  qemu-io -f qcow2 -c 'write -q -s ../first 0 64k' snapshot.qcow2
}

make_qcow2s() {
  say "disk: as qcow2"
  convert plain.qcow2
  convert v2.qcow2 -o compat=0.10
  convert cluster-512.qcow2 -o cluster_size=512
  convert extended-l2.qcow2 -o extended_l2=on
  convert_with_snapshot
  convert zlib.qcow2 -c
  convert v2-zlib.qcow2 -c -o compat=0.10
  convert zstd.qcow2 -c -o compression_type=zstd
  convert cluster-2m-zlib.qcow2 -c -o cluster_size=2M
  convert extended-l2-zlib.qcow2 -c -o extended_l2=on
}

# xz in several blocks and bzip2 in several streams, as the parallel packers of both make them.
make_packed() {
  say "disk: as raw.gz, raw.xz, raw.zst, raw.bz2"
  local half=$(((PARTITION_MIB + 1) / 2))
  head -c "${half}M" disk.raw | bzip2 >../half & local first=$!
  tail -c "+$((half * 1048576 + 1))" disk.raw | bzip2 >../other
  wait "$first"
  cat ../half ../other >disk.raw.bz2
  xz -k -T0 -1 --block-size=16MiB disk.raw
  gzip -k -4 disk.raw & first=$!
  zstd -q -k disk.raw
  wait "$first"
}

check_same() {
  local file bzip2
  say "checking that all of them hold the same bytes"
  bzip2 -dc disk.raw.bz2 | cmp - disk.raw & bzip2=$!
  for file in *.qcow2; do qemu-img compare -q -f raw -F qcow2 disk.raw "$file"; done
  gzip -dc disk.raw.gz | cmp - disk.raw
  xz -dc -T0 disk.raw.xz | cmp - disk.raw
  zstd -dcq disk.raw.zst | cmp - disk.raw
  wait "$bzip2"
}

build() {
  local work=$1 root
  mkdir "$work/out"
  make_root "$work" & root=$!
  fetch_packages "$work"
  make_initrd "$work"
  wait "$root"
  make_disk "$work"
  cd "$work/out"
  make_qcow2s
  make_packed
  check_same
  sha256sum -- * >SHA256SUMS
}

if [[ ${1:-} == --inside ]]; then
  build "$2"
  exit
fi
if [[ ! -d $FINAL ]]; then
  "$HERE/install.sh" </dev/null >&2
  lock debian-disk
  if [[ ! -d $FINAL ]]; then
    WORK=$(work_folder "$FINAL")
    run_contained "$WORK" >&2 || die "making the disk failed; see the messages above"
    mv -T "$WORK/out" "$FINAL"
    rm -rf "$WORK"
  fi
  say "ready: $FINAL"
fi
printf '%s\n' "$FINAL"

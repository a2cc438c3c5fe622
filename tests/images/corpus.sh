#!/usr/bin/env bash
# Makes the corpus of the benchmarks: a GPT disk of 10 GiB with one ext4 that holds about 1.75 GiB of
# this machine's own files, as raw, as several qcow2, and in every other format; a 1 TiB disk with little
# in it; and the first part of the disk, packed in the ways that take the most memory to unpack.
# Usage: corpus.sh      Prints the folder. It is made once (about 16 GiB of disk).
# Which files are taken depends on their paths only, so two runs on one machine take the same.
# Between machines the content differs as their /usr does: compare ratios, not seconds.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$HERE/lib.sh"

FILES_MIB=1640 # with the file system's own data about 1.75 GiB
DISK_MIB=10240
SPARSE_TIB=1 # the disk for the memory test
SPARSE_PIECES=2048 # one for each 512 MiB, so that every second-level table of 64 KiB clusters exists
SPARSE_PIECE_KIB=150 # 300 MiB in all
PACKED_MIB=512 # many times what any of the packers looks back
FINAL=$CACHE/corpus/$(sha256sum <"$HERE/corpus.sh" | cut -c1-12)

# Prints, each ended by NUL, paths below /usr up to the budget, ordered by a digest of the path.
choose_files() {
  python3 - "$FILES_MIB" <<'PYTHON'
import hashlib, os, stat, sys
budget = int(sys.argv[1]) << 20
found = []
for folder, names, files in os.walk("/usr"):
    names[:] = [n for n in names if not os.path.ismount(os.path.join(folder, n))]
    for name in files:
        path = os.fsencode(os.path.join(folder, name))
        about = os.lstat(path)
        if stat.S_ISREG(about.st_mode) and about.st_size:
            found.append((hashlib.sha256(path).digest(), about.st_size, path))
taken = 0
for _, size, path in sorted(found):
    if taken + size <= budget:
        taken += size
        sys.stdout.buffer.write(path.lstrip(b"/") + b"\0")
print(f"{taken >> 20} MiB of files chosen", file=sys.stderr)
if taken < budget * 9 // 10:
    print("this machine's /usr is small: so will be the corpus", file=sys.stderr)
PYTHON
}

make_base() {
  local work=$1 size=$((DISK_MIB - 2)) # a MiB before it and one after it are the partition table's
  choose_files >"$work/list"
  say "disk of $DISK_MIB MiB with a file system that holds them"
  truncate -s "${DISK_MIB}M" base.raw
  printf 'label: gpt\nlabel-id: 2B9D0C1E-53A4-4D0F-8E39-7C6A11F0B2D4\nstart=1MiB, size=%dMiB\n' \
    "$size" | sfdisk -q base.raw
  mke2fs -q -t ext4 -L corpus -U 5d2c3f0a-7e1b-4a67-9c55-0b7c1f2e9a11 \
    -E hash_seed=8a6f1d2e-90b3-4c55-a1d7-3e2b5c6f7a80,lazy_itable_init=0,lazy_journal_init=0,offset=1048576 \
    base.raw "${size}M"
  mkdir "$work/mnt"
  mount -o "loop,offset=1048576,sizelimit=$((size * 1048576))" base.raw "$work/mnt"
  tar -C / --null --files-from="$work/list" -cf - | tar -C "$work/mnt" -xf -
  umount "$work/mnt"
}

convert() {
  local name=$1
  shift
  say "$name"
  qemu-img convert -f raw -O qcow2 -m 16 -W "$@" "$name"
}

# The disk in the other formats, by qemu-img's names for them.
make_formats() {
  local format
  for format in vdi vhdx vpc parallels; do
    say "base.$format"
    qemu-img convert -f raw -O "$format" base.raw "base.$format"
  done
  say "sparse.vmdk"
  qemu-img convert -f raw -O vmdk -o subformat=monolithicSparse base.raw sparse.vmdk
  say "stream.vmdk, stream.ova"
  qemu-img convert -f raw -O vmdk -o subformat=streamOptimized base.raw stream.vmdk
  make_ova
}

# The least that is an appliance: a descriptor, then the disk that it names.
make_ova() {
  cat >stream.ovf <<OVF
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References><File ovf:id="file1" ovf:href="stream.vmdk" ovf:size="$(stat -c %s stream.vmdk)"/></References>
  <DiskSection><Info>Disks</Info><Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="$DISK_MIB"
    ovf:capacityAllocationUnits="byte * 2^20"
    ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>
  <VirtualSystem ovf:id="corpus"><Info>One machine</Info></VirtualSystem>
</Envelope>
OVF
  tar --format=ustar -cf stream.ova stream.ovf stream.vmdk
}

# Pieces of the corpus, evenly spread over a disk so large that its tables alone take 128 MiB.
make_sparse() {
  local step=$((SPARSE_TIB * 1048576 / SPARSE_PIECES))
  say "$SPARSE_TIB TiB with $((SPARSE_PIECES * SPARSE_PIECE_KIB / 1024)) MiB in it"
  python3 - base.raw "$1/sparse.raw" "$step" "$SPARSE_PIECES" "$SPARSE_PIECE_KIB" <<'PYTHON'
import os, sys
source, target = open(sys.argv[1], "rb"), open(sys.argv[2], "wb")
step, pieces, kib = (int(a) for a in sys.argv[3:])
target.truncate((step << 20) * pieces)
offset = 0
for number in range(pieces):
    piece = b""
    while not piece.strip(b"\0"):  # the corpus has holes; take what is data
        offset = os.lseek(source.fileno(), offset, os.SEEK_DATA)
        source.seek(offset)
        piece = source.read(kib << 10)
        offset += len(piece)
    target.seek(number * (step << 20))
    target.write(piece)
PYTHON
  convert sparse-1t-zlib.qcow2 -c "$1/sparse.raw"
}

# xz in several blocks, which can be unpacked side by side; xz that looks back 64 MiB; gzip.
make_packed() {
  say "the first $PACKED_MIB MiB as raw.xz twice, as raw.gz"
  head -c "${PACKED_MIB}M" base.raw >part.raw
  xz -6 -T2 -c part.raw >part-6.raw.xz
  xz -9 -c part.raw >part-9.raw.xz & local xz=$!
  gzip -c part.raw >part.raw.gz
  wait "$xz"
}

check_same() {
  local file
  say "checking that they hold the same bytes"
  for file in zlib zstd plain cluster-2m-zlib; do
    qemu-img compare -q -f raw -F qcow2 base.raw "$file.qcow2"
  done
  qemu-img compare -q -f raw -F qcow2 "$1/sparse.raw" sparse-1t-zlib.qcow2
  for file in part-6 part-9; do xz -dc "$file.raw.xz" | cmp - part.raw; done
  gzip -dc part.raw.gz | cmp - part.raw
}

build() {
  mkdir "$1/out"
  cd "$1/out"
  make_base "$1"
  convert plain.qcow2 base.raw
  convert zlib.qcow2 -c base.raw
  convert zstd.qcow2 -c -o compression_type=zstd base.raw
  convert cluster-2m-zlib.qcow2 -c -o cluster_size=2M base.raw
  make_formats
  make_sparse "$1"
  make_packed
  check_same "$1"
}

if [[ ${1:-} == --inside ]]; then
  build "$2"
  exit
fi
if [[ ! -d $FINAL ]]; then
  "$HERE/install.sh" </dev/null >&2
  lock corpus
  if [[ ! -d $FINAL ]]; then
    WORK=$(work_folder "$FINAL")
    run_contained "$WORK" >&2 || die "making the corpus failed; see the messages above"
    mv -T "$WORK/out" "$FINAL"
    rm -rf "$WORK"
  fi
  say "ready: $FINAL"
fi
printf '%s\n' "$FINAL"

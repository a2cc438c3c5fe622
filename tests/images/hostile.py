#!/usr/bin/env python3
"""Makes small image files that are hostile, broken, or merely odd, for the tests of what is refused.

Usage: hostile.py FOLDER

Writes each file into FOLDER and one JSON line about it into FOLDER/index.jsonl:
  file     its name
  expect   "accepted" or "refused"
  rule     the rule that refuses it; null where accepted
  also     further rule names that are as true of it, because several things are wrong at once or
           one damage cannot be told from the other
  found    "tables": reading headers and tables shows it; "data": only decoding the data does
  why      what is odd about it
  virtualSize, contentSha256   what a guest must see, where accepted
Python standard library only; the same bytes on every run.
"""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import struct
import sys
from dataclasses import dataclass, field

sys.dont_write_bytecode = True  # nothing may appear in the source tree
from qcow2_writer import COPIED, READS_AS_ZERO, Qcow2, deflate, pattern, write_sparse, zstd_run  # noqa: E402

TIB = 1 << 40
FAR = 1 << 40  # an offset that no file here reaches


@dataclass
class Case:
    """One file and what must become of it."""

    file: str
    why: str
    bytes: bytes
    rule: str | None = None
    also: list = field(default_factory=list)
    found: str = "tables"
    content: bytes | None = None


def accepted(name, why, image):
    """A qcow2 that is odd but good."""
    data = image.build()
    return Case(f"ok-{name}.qcow2", why, data, content=image.content())


def refused(name, rule, why, image, also=(), found="tables"):
    """A qcow2, in the making or as bytes, that must be refused."""
    data = image.build() if isinstance(image, Qcow2) else image
    return Case(f"{name}.qcow2", why, data, rule, list(also), found)


def sample(**options):
    """A good image with two plain data clusters."""
    image = Qcow2(**options)
    image.data(0)
    image.data(2)
    return image


def with_entry(guest, value, bitmap=0, **options):
    """A good image but for one L2 entry."""
    image = sample(**options)
    image.entry(guest, value, bitmap)
    return image


def with_l1(index, value, clusters=8, **options):
    """A good image but for one L1 entry."""
    image = sample(clusters=clusters, **options)
    image.l1_entries[index] = value
    return image


def with_packed(packed, **options):
    """An image whose guest cluster 1 holds these compressed bytes."""
    image = sample(**options)
    image.compressed(1, packed=packed)
    return image


# Odd but good ------------------------------------------------------------------------------------

def good_headers():
    yield accepted("v2", "version 2, header of 72 bytes", sample(version=2))
    yield accepted("v3", "version 3, header of 104 bytes", sample())
    longer = sample()
    longer.header_tail = bytes(8)
    yield accepted("header-112", "header of 112 bytes: compression type stated, zlib", longer)
    future = sample()
    future.header_tail = bytes(8) + b"\x01" * 16
    yield accepted("header-128", "header longer than known; the rest is to be skipped", future)
    yield accepted("compatible-bits", "unknown compatible feature bits", sample(compatible=1 << 40 | 1))
    yield accepted("autoclear-bits", "unknown autoclear feature bits", sample(autoclear=1 << 41))
    extended = sample()
    extended.extensions = [(0x6803F857, b"\0\x05" + b"some future feature".ljust(46, b"\0")),
                           (0x12345678, b"unknown extension")]
    yield accepted("extensions", "a feature name table and an unknown extension", extended)
    yield accepted("wide-refcounts", "refcounts of 64 bits", sample(refcount_order=6))
    yield accepted("l1-too-long", "L1 table with more entries than the disk needs", with_l1(3, 0))


def good_mappings():
    yield accepted("empty", "nothing allocated at all", Qcow2(tables_first=False))
    zeros = sample()
    zeros.entry(1, READS_AS_ZERO)
    kept = zeros.place(b"\xee" * zeros.cluster)
    zeros.entry(3, kept | COPIED | READS_AS_ZERO)
    yield accepted("zero-clusters", "clusters that read as zeros, one with stale data behind", zeros)
    late = Qcow2(tables_first=False)
    for guest in range(7, -1, -1):
        late.data(guest)
    yield accepted("tables-last", "data first and backwards, the tables behind it", late)
    yield accepted("cluster-512", "the smallest cluster", sample(bits=9, clusters=300))
    yield accepted("cluster-2m", "the largest cluster", sample(bits=21, clusters=3))
    yield accepted("part-of-a-cluster", "the disk ends inside a cluster", sample(size=2 * 4096 + 1536))
    cut = sample(size=2 * 4096 + 1536)
    whole = cut.build()
    yield Case("ok-file-ends-with-disk.qcow2", "the file ends where the disk does, inside a cluster",
               whole[:len(whole) - 4096 + 1536], content=cut.content())
    deep = sample(clusters=512 * 40)
    deep.data(512 * 39 + 7)
    yield accepted("sparse-l1", "two L2 tables far apart", deep)
    parts = Qcow2(bits=14, extended=True)
    content = bytearray(pattern("parts", parts.cluster))
    parts.data(1, bytes(content), bitmap=0x0000FF0F)
    for number in range(32):
        if not 0x0000FF0F >> number & 1:
            content[number * 512:(number + 1) * 512] = bytes(512)
    parts.guest[1] = bytes(content)
    parts.entry(2, 0, 0xFFFFFFFF << 32)
    yield accepted("extended-l2", "subclusters: allocated, not allocated, zero", parts)


def good_compressed():
    packed = Qcow2()
    for guest in (0, 1, 2, 5):
        packed.compressed(guest)
    yield accepted("zlib", "compressed clusters that share sectors and cross host clusters", packed)
    tail = Qcow2()
    offset = tail.compressed(0)
    data = tail.build()
    end = offset + len(deflate(tail.guest[0]))
    yield Case("ok-last-sector-cut.qcow2",
               "the file ends with the compressed bytes, before the sector that the entry counts",
               data[:end], content=tail.content())
    wide = Qcow2()
    wide.compressed(0)
    wide.entry(0, wide.tables[0][0][0] + (1 << 58))
    yield accepted("sectors-overstated", "the entry counts one sector more than the stream needs", wide)
    yield accepted("zstd", "a zstd cluster", zstd_image(zstd_run(7, 4096), b"\x07" * 4096))


def zstd_image(packed, content=None):
    """An image of compression type zstd with one compressed cluster."""
    image = sample(incompatible=8)
    image.header_tail = b"\x01" + bytes(7)
    image.compressed(1, content, packed)
    return image


def good_packed():
    disk = mbr_disk()
    half = len(disk) // 2
    yield Case("ok-mbr.raw", "a raw disk with an MBR", disk, content=disk)
    for suffix, pack in (("gz", lambda d: gzip.compress(d, mtime=0)), ("xz", lzma.compress), ("bz2", bz2.compress)):
        yield Case(f"ok-raw.{suffix}", "a packed raw disk", pack(disk), content=disk)
        yield Case(f"ok-raw-two-streams.{suffix}", "two packed streams in a row",
                   pack(disk[:half]) + pack(disk[half:]), content=disk)
    inner = sample()
    yield Case("ok-qcow2.gz", "a packed qcow2", gzip.compress(inner.build(), mtime=0), content=inner.content())


def mbr_disk():
    entry = struct.pack("<B3sB3sII", 0x80, b"\x01\x01\x00", 0x83, b"\xfe\xff\xff", 1, 255)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + pattern("raw disk", 255 * 512)


# What names other files, or cannot be read -------------------------------------------------------

def foreign_files():
    for name, target in (("path", b"/etc/passwd"), ("json", b'json:{"driver":"file","filename":"/etc/passwd"}'),
                         ("url", b"nbd://127.0.0.1:10809/secret"), ("long", b"x" * 1023)):
        yield refused(f"backing-file-{name}", "backing-file", "names a backing file",
                      sample(backing_name=target))
    yield refused("backing-file-v2", "backing-file", "names a backing file, version 2",
                  sample(version=2, backing_name=b"/etc/shadow"))
    yield refused("backing-file-too-long", "backing-file", "backing file name of 4 GiB",
                  sample(backing_offset=200, backing_size=0xFFFFFFFF))
    yield refused("backing-file-elsewhere", "backing-file", "backing file name past the end of the file",
                  sample(backing_offset=FAR, backing_size=10))
    named = sample(incompatible=4)
    named.extensions = [(0x44415441, b"/etc/passwd")]
    yield refused("data-file", "external-data-file", "names an external data file", named)
    yield refused("data-file-unnamed", "external-data-file", "external data file bit without a name",
                  sample(incompatible=4))
    for name, why, bits in (("raw", "external data file, said to be raw", dict(incompatible=4, autoclear=2)),
                            ("without-its-bit", "names an external data file, and its bit is not set", {})):
        named = sample(**bits)
        named.extensions = [(0x44415441, b"/etc/passwd")]
        yield refused(f"data-file-{name}", "external-data-file", why, named)


def unreadable():
    for number, name in ((1, "aes"), (2, "luks"), (3, "unknown")):
        image = sample(crypt_method=number)
        if name == "luks":
            header = image.place(luks_header(1))
            image.extensions = [(0x0537BE77, struct.pack(">QQ", header, image.cluster))]
        yield refused(f"encrypted-{name}", "encrypted", f"encryption method {number}", image)
    yield refused("encrypted-v2", "encrypted", "AES, version 2", sample(version=2, crypt_method=1))
    for bit in (5, 31, 63):
        yield refused(f"incompatible-bit-{bit}", "unknown-incompatible-feature",
                      f"unknown incompatible feature bit {bit}", sample(incompatible=1 << bit))
    yield refused("dirty", "dirty", "marked dirty: refcounts may be wrong", sample(incompatible=1))
    yield refused("corrupt", "corrupt", "marked corrupt", sample(incompatible=2))
    unknown = sample(incompatible=8)
    unknown.header_tail = b"\x07" + bytes(7)
    yield refused("compression-type-7", "unknown-incompatible-feature", "unknown compression type",
                  unknown, ["invalid-field"])
    silent = zstd_image(zstd_run(7, 4096))
    silent.fields["incompatible"] = 0
    yield refused("compression-type-hidden", "unknown-incompatible-feature",
                  "compression type zstd without its feature bit", silent, ["invalid-field"])


def luks_header(version):
    """The first bytes of a LUKS volume: what it is and how it is enciphered."""
    return (b"LUKS\xba\xbe" + struct.pack(">H", version) + b"aes".ljust(32, b"\0")
            + b"xts-plain64".ljust(32, b"\0") + b"sha256".ljust(32, b"\0"))


# Header fields -----------------------------------------------------------------------------------

def bad_headers():
    for version in (0, 1, 4, 0xFFFFFFFF):
        yield refused(f"version-{version}", "version", f"version {version}", sample(version=version))
    for bits in (0, 8, 22, 63, 0xFFFFFFFF):
        image = sample()
        image.fields["cluster_bits"] = bits
        yield refused(f"cluster-bits-{bits}", "cluster-size", f"clusters of 2^{bits} bytes", image)
    small = sample(bits=13, incompatible=16)
    yield refused("extended-l2-small-clusters", "cluster-size", "subclusters under 512 bytes", small)
    for length in (0, 72, 103, 4097, 0xFFFFFFFF):
        yield refused(f"header-length-{length}", "header-length", f"header length {length}",
                      sample(header_length=length))
    endless = sample()
    endless.extensions = [(0x12345678, b"")]
    data = bytearray(endless.build())
    data[108:112] = b"\xff\xff\xff\xf0"
    yield refused("extension-too-long", "invalid-field", "header extension of 4 GiB", bytes(data))
    yield refused("refcount-order-7", "invalid-field", "refcounts of 128 bits", sample(refcount_order=7))
    for name, size in (("63-tib", 63 * TIB), ("8-eib", (1 << 63) - 512), ("16-eib", (1 << 64) - 512)):
        yield huge(name, size)


def huge(name, size):
    """An empty disk far larger than anything real; its L1 table is what the size asks for if it can be."""
    bits = 21
    image = Qcow2(bits=bits, clusters=1, tables_first=False)
    image.fields.update(size=size, l1_size=min(-(-size >> (2 * bits - 3)), 1 << 18))
    return refused(f"virtual-size-{name}", "virtual-size-limit", f"a virtual disk of {size} bytes in a small file",
                   image, ["table-out-of-range"] if size >= 1 << 62 else [])


# Tables ------------------------------------------------------------------------------------------

def tables_out_of_range():
    rule = "table-out-of-range"
    for name, offset in (("past-eof", FAR), ("misaligned", 3 * 4096 + 512), ("at-2-63", 1 << 63),
                         ("huge", (1 << 64) - 4096)):
        yield refused(f"l1-{name}", rule, f"L1 table at {offset:#x}", sample(l1_offset=offset),
                      ["truncated"] if name == "past-eof" else [])
    yield refused("l1-too-short", rule, "L1 table with fewer entries than the disk needs",
                  sample(clusters=512 * 3, l1_size=1))
    yield refused("l1-none", rule, "no L1 table for a disk that has a size", sample(l1_size=0))
    yield refused("l1-endless", rule, "L1 table of 32 GiB", sample(l1_size=0xFFFFFFFF), ["truncated"])
    yield refused("l1-runs-past-eof", rule, "L1 table that begins in the file and ends past it",
                  sample(l1_size=4096), ["truncated"])
    yield refused("l2-past-eof", rule, "L2 table past the end", with_l1(1, FAR | COPIED, 1024), ["truncated"])
    yield refused("l2-misaligned", rule, "L2 table not on a cluster", with_l1(0, 4 * 4096 + 512 | COPIED))
    yield refused("data-past-eof", rule, "data cluster far past the end", with_entry(1, FAR | COPIED), ["truncated"])
    yield refused("data-misaligned", rule, "data not on a cluster", with_entry(1, 5 * 4096 + 512 | COPIED))
    for name, offset in (("past-eof", FAR), ("misaligned", 4096 + 512)):
        yield refused(f"refcounts-{name}", rule, f"refcount table at {offset:#x}",
                      sample(refcount_offset=offset), ["truncated"] if name == "past-eof" else [])
    yield refused("snapshots-past-eof", rule, "snapshot table past the end",
                  sample(snapshots=1, snapshots_offset=FAR), ["truncated"])
    yield refused("snapshots-too-many", rule, "4 billion snapshots",
                  sample(snapshots=0xFFFFFFFF, snapshots_offset=8192), ["truncated"])
    yield refused("subclusters-contradict", "invalid-field", "subclusters both allocated and zero",
                  with_entry(1, 6 << 14 | COPIED, 0xFFFFFFFF << 32 | 1, bits=14, extended=True))


def tables_overlap():
    rule = "table-overlap"
    yield refused("l1-over-header", rule, "L1 table at offset 0, over the header", sample(l1_offset=0))
    places = sample().placed
    l1, l2 = places["l1"], places["l2", 0]
    yield refused("l2-shared", rule, "two L1 entries share one L2 table", with_l1(1, l2 | COPIED, 1024))
    bare = Qcow2(clusters=1024)
    bare.l1_entries = dict.fromkeys((0, 1), l2 | COPIED)
    yield refused("l2-shared-and-empty", rule, "two L1 entries share one L2 table, which maps nothing", bare)
    yield refused("l2-is-l1", rule, "an L1 entry names the L1 table", with_l1(1, l1 | COPIED, 1024))
    yield refused("l2-names-itself", rule, "an L2 entry names its own table as data", with_entry(1, l2 | COPIED))
    yield refused("data-is-l1", rule, "an L2 entry names the L1 table as data", with_entry(1, l1 | COPIED))
    yield refused("data-is-refcounts", rule, "an L2 entry names the refcount table as data",
                  with_entry(1, places["refcounts"] | COPIED))
    yield refused("l1-is-refcounts", rule, "L1 and refcount table at the same place",
                  sample(refcount_offset=l1))


# Damaged or dangerous data -----------------------------------------------------------------------

def truncated():
    image = sample()
    data = image.build()
    l1, l2 = image.placed["l1"], image.placed["l2", 0]
    first = image.tables[0][0][0] & ~COPIED
    for name, length in (("magic", 4), ("header-v2", 71), ("header-v3", 100), ("header-only", 104),
                         ("first-cluster", 4096), ("in-l1", l1 + 4), ("before-l2", l2),
                         ("in-l2", l2 + 12), ("before-data", first), ("in-data", first + 100),
                         ("last-data", len(data) - 1)):
        yield refused(f"truncated-{name}", "truncated", f"cut to {length} bytes", data[:length],
                      ["table-out-of-range"])
    yield refused("truncated-v2-header-only", "truncated", "a version 2 header and nothing else",
                  sample(version=2).build()[:72], ["table-out-of-range"])
    packed = Qcow2()
    offset = packed.compressed(0)
    yield refused("truncated-in-compressed", "truncated", "cut inside a compressed cluster",
                  packed.build()[:offset + 600], ["compressed-cluster", "table-out-of-range"])


def bad_compressed():
    rule = "compressed-cluster"
    good = pattern(1, 4096)
    for name, why, packed in (
            ("too-long", "inflates past the cluster", deflate(good + b"more" * 256)),
            ("far-too-long", "4 KiB that inflate to 4 MiB", deflate(bytes(4 << 20))),
            ("too-short", "inflates to half a cluster", deflate(good[:2048])),
            ("garbage", "is no deflate stream", b"\xff" * 700),
            ("zeros", "a deflate stream of nothing but zeros", bytes(700)),
            ("unfinished", "the stream ends too early", deflate(good)[:512])):
        yield refused(f"compressed-{name}", rule, why, with_packed(packed), found="data")
    for name, why, packed in (
            ("too-long", "a zstd frame of twice the cluster", zstd_run(7, 8192)),
            ("too-short", "a zstd frame of half the cluster", zstd_run(7, 2048)),
            ("lies", "a zstd frame that holds more than it states", zstd_run(7, 8192, claimed=4096)),
            ("window", "a zstd frame that asks for a window of 3.75 TiB", zstd_run(7, 4096, window=0xFF)),
            ("garbage", "no zstd frame", b"\xff" * 700)):
        yield refused(f"zstd-{name}", rule, why, zstd_image(packed), found="data")
    image = sample()
    yield refused("compressed-past-eof", rule, "compressed bytes past the end",
                  with_entry(1, image.descriptor(FAR, 600)), ["table-out-of-range", "truncated"])
    yield refused("compressed-in-table", rule, "compressed bytes inside the L2 table",
                  with_entry(1, image.descriptor(image.placed["l2", 0] + 64, 600)), ["table-overlap"], "tables")


def bombs():
    yield refused("bomb-compressed", "bomb", "16 GiB of content from one compressed cluster of 2 MiB",
                  bomb(21, 8192, lambda image: image.compressed(0, packed=deflate(b"\xaa" * (1 << 21)))), ["table-overlap"])
    yield refused("bomb-compressed-64k", "bomb", "1 GiB of content from one compressed cluster of 64 KiB",
                  bomb(16, 16384, lambda image: image.compressed(0, packed=deflate(b"\xaa" * 65536))), ["table-overlap"])
    yield refused("bomb-plain", "bomb", "1 GiB of content from one plain cluster of 64 KiB",
                  bomb(16, 16384, lambda image: image.data(0, b"\xaa" * 65536, flags=0)), ["table-overlap"])


def bomb(bits, clusters, fill):
    """A file whose refcounts are right and whose every guest cluster is the same host cluster."""
    image = Qcow2(bits=bits, clusters=clusters, refcount_order=6)
    fill(image)
    image.guest.clear()
    value, _ = image.tables[0][0]
    for guest in range(clusters):
        image.entry(guest, value)
    image.refcounts[(value & (1 << 48) - 1) // image.cluster] = clusters
    return image


# Other formats -----------------------------------------------------------------------------------

def other_formats():
    disk = mbr_disk()
    plain = gzip.compress(disk, mtime=0)
    rule = "unsupported-format"
    for version in (1, 2):
        yield Case(f"luks{version}.raw", "an encrypted raw disk",
                   luks_header(version).ljust(4096, b"\0") + pattern("luks", 65536), "encrypted")
    qed = b"QED\0" + struct.pack("<IIIQQQQQ", 65536, 4, 1, 0, 0, 0, 65536, 1 << 20)
    yield Case("disk.qed", "QED", qed.ljust(65536, b"\0") + bytes(262144), rule)
    first = b"QFI\xfb" + struct.pack(">IQIIQBBHIQ", 1, 0, 0, 0, 1 << 20, 12, 9, 0, 0, 48)
    yield Case("disk.qcow", "qcow version 1", first.ljust(4096, b"\0"), "version", [rule])
    descriptor = (b'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n'
                  b'createType="monolithicFlat"\nRW 2048 FLAT "/etc/passwd" 0\n')
    yield Case("descriptor.vmdk", "VMDK descriptor that names another file", descriptor, rule, ["external-data-file"])
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>no such image</body></html>\n"
    yield Case("page.qcow2", "an HTML page in place of the image", page, "not-a-disk")
    yield Case("page-raw.raw", "an HTML page in place of the image", page * 20, "not-a-disk")
    yield Case("gz-in-gz.raw.gz", "gzip inside gzip", gzip.compress(plain, mtime=0), "nested-compression")
    yield Case("empty.raw", "a file of no bytes", b"", "not-a-disk", ["truncated"])
    for length in (1, 511):
        yield Case(f"short-{length}.raw", f"a file of {length} bytes, less than a sector", b"\xeb" * length, "not-a-disk")
    rule = "compressed-stream"
    for name, why, data, also in (
            ("cut.raw.gz", "gzip stream cut short", plain[:-100], ["truncated"]),
            ("cut.raw.bz2", "bzip2 stream cut short", bz2.compress(disk)[:-20], ["truncated"]),
            ("cut.raw.xz", "xz stream cut short", lzma.compress(disk)[:-20], ["truncated"]),
            ("bad-sum.raw.gz", "gzip stream with a wrong CRC", plain[:-8] + bytes(4) + plain[-4:], []),
            ("trailing.raw.gz", "gzip stream with something else behind", plain + b"trailing garbage", [])):
        yield Case(name, why, data, rule, also, "data")
    yield Case("backing-in-gz.qcow2.gz", "a packed qcow2 that names a backing file",
               gzip.compress(sample(backing_name=b"/etc/passwd").build(), mtime=0), "backing-file")


GROUPS = (good_headers, good_mappings, good_compressed, good_packed, foreign_files, unreadable,
          bad_headers, tables_out_of_range, tables_overlap, truncated, bad_compressed, bombs, other_formats)


def describe(case):
    line = {"file": case.file, "expect": "refused" if case.rule else "accepted", "rule": case.rule,
            "also": case.also, "found": case.found, "why": case.why}
    if case.content is not None:
        line["virtualSize"] = len(case.content)
        line["contentSha256"] = hashlib.sha256(case.content).hexdigest()
    return json.dumps(line)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: hostile.py FOLDER")
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    lines = {}
    for group in GROUPS:
        for case in group():
            if case.file in lines:
                sys.exit(f"two cases are called {case.file}")
            write_sparse(os.path.join(folder, case.file), case.bytes)
            lines[case.file] = describe(case)
    with open(os.path.join(folder, "index.jsonl"), "w", encoding="utf-8") as index:
        index.write("".join(line + "\n" for line in lines.values()))
    print(f"{len(lines)} files in {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()

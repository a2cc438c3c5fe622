"""Writes small qcow2 files whose every field may be wrong on purpose.

Knows the layout of the format (the qcow2 specification in QEMU's docs/interop/qcow2.txt). Keeps
refcounts right by itself, so that a file is odd only where a test wants it odd. Python standard
library only.
"""

import hashlib
import struct
import zlib

COPIED = 1 << 63
COMPRESSED = 1 << 62
READS_AS_ZERO = 1
MAGIC = b"QFI\xfb"
# Header fields in order: name and struct code. The first 72 bytes are all that version 2 has.
FIELDS = (
    ("version", "I"), ("backing_offset", "Q"), ("backing_size", "I"), ("cluster_bits", "I"),
    ("size", "Q"), ("crypt_method", "I"), ("l1_size", "I"), ("l1_offset", "Q"),
    ("refcount_offset", "Q"), ("refcount_clusters", "I"), ("snapshots", "I"),
    ("snapshots_offset", "Q"),
)
FIELDS_V3 = (
    ("incompatible", "Q"), ("compatible", "Q"), ("autoclear", "Q"), ("refcount_order", "I"),
    ("header_length", "I"),
)


def deflate(data):
    """Raw deflate with the 4 KiB window that qcow2 readers expect."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


def zstd_run(byte, length, claimed=None, window=None):
    """A zstd frame of one run-length block; `claimed` is the content size its header states,
    `window` a window descriptor byte to use in place of the single-segment form."""
    block = struct.pack("<I", length << 3 | 1 << 1 | 1)[:3] + bytes([byte])
    if window is not None:
        return b"\x28\xb5\x2f\xfd\x00" + bytes([window]) + block
    size = length if claimed is None else claimed
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size) + block


def pattern(seed, length):
    """`length` bytes that no other seed gives, and that pack to about half."""
    rows = range(0, length, 64)
    out = b"".join(hashlib.sha256(f"{seed}:{row}".encode()).digest() + bytes(31) + b"." for row in rows)
    return out[:length]


def write_sparse(path, data):
    """Writes `data`, leaving its long runs of zeros as holes."""
    step = 65536
    with open(path, "wb") as out:
        out.truncate(len(data))
        for at in range(0, len(data), step):
            piece = data[at:at + step]
            if piece.count(0) != len(piece):
                out.seek(at)
                out.write(piece)


class Qcow2:
    """One image in the making: add clusters, wrong fields, then build()."""

    def __init__(self, clusters=8, bits=12, version=3, size=None, extended=False,
                 tables_first=True, **fields):
        self.bits, self.version = bits, version
        self.cluster = 1 << bits
        self.size = clusters * self.cluster if size is None else size
        self.entry_bytes = 16 if extended else 8
        self.l2_entries = self.cluster // self.entry_bytes
        self.fields = dict(incompatible=16 if extended else 0)
        self.fields.update(fields)
        self.extensions = []  # (type, payload)
        self.header_tail = b""  # bytes of the header after the known 104
        self.tables = {}  # L1 index -> {L2 index -> (entry, bitmap)}
        self.l1_entries = {}  # L1 index -> entry, where it must differ from the true one
        self.guest = {}  # guest cluster -> content
        self.refcounts = {}  # host cluster -> count, where it is not 1
        self.body = bytearray()  # host clusters from the second one on
        self.packed_at = 0  # where the next compressed cluster goes, 0: a new host cluster
        self.placed = {}  # where the tables are: "l1", ("l2", index), "refcounts", "block"
        if tables_first:  # as qemu-img does; else they follow the data
            for key in ("refcounts", "block", "l1", ("l2", 0)):
                self.placed[key] = self.place(bytes(self.cluster))

    # Parts of the file -------------------------------------------------------------------------

    def end(self):
        return self.cluster + len(self.body)

    def place(self, data):
        """Appends `data` in whole host clusters and returns its offset."""
        offset = self.end()
        self.body += data + bytes(-len(data) % self.cluster)
        self.packed_at = 0
        return offset

    def place_table(self, key, table):
        """Writes a table to the cluster kept for it, or appends it; returns its offset."""
        if key not in self.placed or len(table) > self.cluster:
            self.placed[key] = self.place(table)
        else:
            at = self.placed[key] - self.cluster
            self.body[at:at + len(table)] = table
        return self.placed[key]

    def entry(self, guest, value, bitmap=0):
        """Sets the L2 entry of a guest cluster, as it is to stand in the file."""
        self.tables.setdefault(guest // self.l2_entries, {})[guest % self.l2_entries] = (value, bitmap)

    def data(self, guest, content=None, flags=COPIED, bitmap=0xFFFFFFFF):
        """Gives a guest cluster a plain host cluster; returns its offset."""
        content = pattern(guest, self.cluster) if content is None else content
        offset = self.place(content)
        self.entry(guest, offset | flags, bitmap)
        self.guest[guest] = content
        return offset

    def descriptor(self, offset, length):
        """The L2 entry of compressed bytes at `offset`: length counts in sectors of 512."""
        shift = 62 - (self.bits - 8)
        sectors = (offset + length - 1) // 512 - offset // 512
        return COMPRESSED | sectors << shift | offset

    def compressed(self, guest, content=None, packed=None):
        """Gives a guest cluster compressed bytes, packed behind those before; returns their offset."""
        content = pattern(guest, self.cluster) if content is None else content
        packed = deflate(content) if packed is None else packed
        offset = self.packed_at or self.end()
        tail = self.body[offset - self.cluster:]
        assert not any(tail), "compressed data would overwrite something"
        self.body[offset - self.cluster:] = packed
        self.body += bytes(-len(self.body) % self.cluster)
        self.packed_at = offset + len(packed) if (offset + len(packed)) % self.cluster else 0
        value = self.descriptor(offset, len(packed))
        self.entry(guest, value)
        self.guest[guest] = content
        last = offset // 512 * 512 + ((value & ~COMPRESSED) >> (62 - (self.bits - 8)) << 9) + 511
        for host in range(offset // self.cluster, last // self.cluster + 1):
            self.refcounts[host] = self.refcounts.get(host, 0) + 1
        return offset

    # The file ----------------------------------------------------------------------------------

    def build(self):
        """The whole file as bytes."""
        l1 = dict(self.l1_entries)
        for index in sorted(self.tables):
            offset = self.place_table(("l2", index), self.l2_table(index))
            l1.setdefault(index, offset | COPIED)
        needed = max(-(-self.size // (self.cluster * self.l2_entries)), 1)
        count = max([needed, *(index + 1 for index in l1)])
        table = bytearray(8 * count)
        for index, value in l1.items():
            struct.pack_into(">Q", table, 8 * index, value)
        l1_offset = self.place_table("l1", table)
        refcount_offset = self.place_refcounts()
        defaults = dict(l1_size=count, l1_offset=l1_offset, refcount_offset=refcount_offset)
        return self.header({**defaults, **self.fields}) + bytes(self.body)

    def l2_table(self, index):
        table = bytearray(self.cluster)
        for slot, (value, bitmap) in self.tables[index].items():
            struct.pack_into(">Q", table, slot * self.entry_bytes, value)
            if self.entry_bytes == 16:
                struct.pack_into(">Q", table, slot * 16 + 8, bitmap)
        return table

    def place_refcounts(self):
        """One refcount block after one table, both counted; returns the table's offset."""
        order = self.fields.get("refcount_order", 4)
        width = 1 << max(order, 3) if order <= 6 else 16
        code = {8: "B", 16: "H", 32: "I", 64: "Q"}[width]
        block_offset = self.place_table("block", bytes(self.cluster))
        offset = self.place_table("refcounts", struct.pack(">Q", block_offset))
        used = self.end() // self.cluster
        block = bytearray(self.cluster)
        for host in range(used):
            struct.pack_into(">" + code, block, host * width // 8, self.refcounts.get(host, 1))
        self.place_table("block", block)
        return offset

    def header(self, fields):
        values = dict(version=self.version, backing_offset=0, backing_size=0, crypt_method=0,
                      cluster_bits=self.bits, size=self.size, refcount_clusters=1, snapshots=0,
                      snapshots_offset=0, compatible=0, autoclear=0, refcount_order=4,
                      header_length=104 + len(self.header_tail))
        values.update(fields)
        layout = FIELDS if self.version == 2 else FIELDS + FIELDS_V3
        out = MAGIC + b"".join(struct.pack(">" + code, values[name]) for name, code in layout)
        out += self.header_tail
        for kind, payload in self.extensions:
            out += struct.pack(">II", kind, len(payload)) + payload + bytes(-len(payload) % 8)
        name = values.get("backing_name", b"")
        if name and "backing_offset" not in fields:
            at = len(out) + 8  # behind the end-of-extensions mark
            out = out[:8] + struct.pack(">QI", at, len(name)) + out[20:] + bytes(8) + name
        assert len(out) <= self.cluster, "the header does not fit its cluster"
        return out + bytes(self.cluster - len(out))

    def content(self):
        """What a guest must see."""
        parts = []
        for index in range(-(-self.size // self.cluster)):
            parts.append(self.guest.get(index, bytes(self.cluster)))
        return b"".join(parts)[:self.size]

"""The jobs that are measured: what Vitrine does, what its peers do, and how one of them is run.

Python standard library only.
"""

import hashlib
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
CACHE = Path(os.environ.get("VITRINE_CACHE")
             or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitrine")
QEMU = CACHE / "bin/qemu-img"
BLOCK = 1 << 20

# Before a command: it ends with who started it, however that ends.
TIED = ["setpriv", "--pdeathsig", "KILL", "--"]


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass
class Run:
    """What one run took: seconds, seconds of processor time, MiB of the largest process."""

    wall: float
    cpu: float
    memory: float


def measure(command):
    """Runs a command to its end."""
    began = time.monotonic()
    child = subprocess.Popen(TIED + [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()
        child.wait()
        raise
    wall = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"bench: exit status {child.returncode} from: {' '.join(map(str, command))}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


class Corpus:
    """The disks, and where they are served."""

    def __init__(self, folder, url):
        self.folder, self.url = Path(folder), url.rstrip("/")

    def file(self, name):
        return self.folder / name

    def link(self, name):
        return f"{self.url}/{name}"


# The jobs. Each is a command that puts its output into a fresh folder, and the name of that output ---------------------------

def vitrine_import(name):
    def command(corpus, out):
        return [RELEASE / "vitrine", "import", corpus.link(name), "--store", out / "store", "--quiet"]
    return command, "store/*/data"


def vitrine_convert(name, compression):
    def command(corpus, out):
        return [RELEASE / "vitrine", "convert", corpus.file(name), out / "disk", "-O", "qcow2", "-c", compression, "--quiet"]
    return command, "disk"


def vitrine_stream(name):
    def command(corpus, out):
        return [RELEASE / "vitrine", "convert", corpus.file(name), out / "disk", "-O", "vmdk", "--subformat", "streamOptimized",
                "--quiet"]
    return command, "disk"


def qemu_stream(name):
    def command(corpus, out):
        return [QEMU, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", corpus.file(name), out / "disk"]
    return command, "disk"


def unpacked_by(tool, name):
    def command(corpus, out):
        return ["sh", "-c", '"$1" -dc "$2" >"$3"', "unpack", tool, corpus.file(name), out / "disk"]
    return command, "disk"


def qemu_to_raw(name, source="qcow2"):
    def command(corpus, out):
        return [QEMU, "convert", "-f", source, "-O", "raw", corpus.file(name), out / "disk"]
    return command, "disk"


def qemu_to_durable_raw(name):
    def command(corpus, out):
        script = 'qemu=$1 from=$2 to=$3; shift 3; "$@" "$qemu" convert -f qcow2 -O raw "$from" "$to" && "$@" sync "$to"'
        return ["sh", "-c", script, "durable", QEMU, corpus.file(name), out / "disk", *TIED]
    return command, "disk"


def qemu_and_sha256sum(name, source="qcow2"):
    def command(corpus, out):
        script = ('qemu=$1 format=$2 from=$3 to=$4; shift 4; "$@" "$qemu" convert -f "$format" -O raw "$from" "$to" & '
                  '"$@" sha256sum "$from" && wait $!')
        return ["sh", "-c", script, "both", QEMU, source, corpus.file(name), out / "disk", *TIED]
    return command, "disk"


def qemu_to_qcow2(name, compression):
    def command(corpus, out):
        return [QEMU, "convert", "-f", "raw", "-O", "qcow2", "-c", "-m", "16", "-W", "-o", f"compression_type={compression}",
                corpus.file(name), out / "disk"]
    return command, "disk"


def as_cdi_does(name):
    def command(corpus, out):
        return [sys.executable, Path(__file__).with_name("bench.py"), "--as-cdi", corpus.link(name), out / "scratch", out / "disk"]
    return command, "disk"


def download(url, scratch):
    """Downloads with SHA-256, and makes the file durable."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url) as answer, open(scratch, "wb") as file:
        while piece := answer.read(BLOCK):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def import_as_cdi_does(url, scratch, target):
    """Download to a scratch file, convert it: CDI's phases TransferScratch and Convert."""
    download(url, scratch)
    subprocess.run([*TIED, QEMU, "convert", "-t", "writeback", "-f", "qcow2", "-O", "raw", scratch, target], check=True)


@dataclass
class Row:
    """One line of the table."""

    job: str
    peer_name: str
    goal: float | None
    ours: tuple
    peer: tuple
    output: str = "raw"
    cold: bool = False  # neither side finds its source in the page cache


FORMAT_ROWS = [
    Row("streamOptimized vmdk over HTTP → store", "qemu-img, local file, no hash", 4.0, vitrine_import("stream.vmdk"),
        qemu_to_raw("stream.vmdk", "vmdk")),
    Row("the same in an OVA", "qemu-img, the vmdk as a local file, no hash", 4.0, vitrine_import("stream.ova"),
        qemu_to_raw("stream.vmdk", "vmdk")),
    Row("qcow2 of 2 MiB zlib clusters over HTTP → store", "qemu-img, local file, no hash", 2.5,
        vitrine_import("cluster-2m-zlib.qcow2"), qemu_to_raw("cluster-2m-zlib.qcow2")),
    *[Row(f"{name} over HTTP → store", "qemu-img beside sha256sum", 1.3, vitrine_import(file), qemu_and_sha256sum(file, kind))
      for name, file, kind in (("vdi", "base.vdi", "vdi"), ("vhdx", "base.vhdx", "vhdx"), ("vhd", "base.vpc", "vpc"),
                               ("ploop", "base.parallels", "parallels"), ("sparse vmdk", "sparse.vmdk", "vmdk"))],
    Row("raw.xz in several blocks over HTTP → store", "xz -dc, local file", 1.6, vitrine_import("part-6.raw.xz"),
        unpacked_by("xz", "part-6.raw.xz")),
    Row("raw.gz over HTTP → store", "gzip -dc, local file", 1.2, vitrine_import("part.raw.gz"),
        unpacked_by("gzip", "part.raw.gz")),
    Row("raw file → streamOptimized vmdk", "qemu-img", 2.0, vitrine_stream("base.raw"), qemu_stream("base.raw"), "vmdk"),
]
MAIN_ROWS = [
    Row("zlib qcow2 over HTTP → store", "qemu-img, local file, no hash", 2.5, vitrine_import("zlib.qcow2"),
        qemu_to_raw("zlib.qcow2")),
    Row("the same", "as CDI does: scratch file, sha256, qemu-img", 3.5, vitrine_import("zlib.qcow2"),
        as_cdi_does("zlib.qcow2")),
    Row("zstd qcow2 over HTTP → store", "qemu-img, local file, no hash", 2.5, vitrine_import("zstd.qcow2"),
        qemu_to_raw("zstd.qcow2")),
    Row("zlib again", "qemu-img, then fsync", None, vitrine_import("zlib.qcow2"), qemu_to_durable_raw("zlib.qcow2")),
    Row("zstd again", "qemu-img, then fsync", None, vitrine_import("zstd.qcow2"), qemu_to_durable_raw("zstd.qcow2")),
    Row("uncompressed qcow2 over HTTP → store", "qemu-img beside sha256sum", 1.3, vitrine_import("plain.qcow2"),
        qemu_and_sha256sum("plain.qcow2")),
    Row("raw over HTTP → store", "qemu-img beside sha256sum", 1.3, vitrine_import("base.raw"),
        qemu_and_sha256sum("base.raw", "raw")),
    Row("raw file → qcow2 zlib", "qemu-img -c -m 16 -W", 2.0, vitrine_convert("base.raw", "zlib"),
        qemu_to_qcow2("base.raw", "zlib"), "qcow2"),
    Row("raw file → qcow2 zstd", "qemu-img -c -m 16 -W", 1.2, vitrine_convert("base.raw", "zstd"),
        qemu_to_qcow2("base.raw", "zstd"), "qcow2"),
]
# Once each, for the memory: what it is, the source, and what qemu-img compares the output with.
MEMORY_ROWS = [
    ("1 TiB virtual disk, zlib qcow2", "sparse-1t-zlib.qcow2", "sparse-1t-zlib.qcow2", "qcow2"),
    ("raw.xz -6 -T2, several blocks", "part-6.raw.xz", "part.raw", "raw"),
    ("raw.xz -9", "part-9.raw.xz", "part.raw", "raw"),
    ("raw.gz", "part.raw.gz", "part.raw", "raw"),
]

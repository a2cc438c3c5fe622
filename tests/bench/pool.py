"""What is measured into a pool of a real Ceph cluster, which has its data on this machine's disk: one monitor, one OSD.

Everything goes through one cluster, in turns: Vitrine into one namespace of a pool, its peer into another; both are emptied after each run.
Python standard library only.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs import QEMU, RELEASE, ROOT, TIED, Row, download, say

POOL = "images"
# Debian's own, with the driver for RBD; the newest one in the cache has none.
POOL_QEMU = "/usr/bin/qemu-img"
SPARSE = "sparse-8g.raw"
SPARSE_BYTES = 8 << 30
PIECES, PIECE = 64, 16 << 20  # 1 GiB of data


@dataclass
class Place:
    """Where one side writes: a namespace of the pool, and a folder for what it needs besides."""

    cluster: "Cluster"
    namespace: str
    folder: Path

    @property
    def spec(self):
        return f"{POOL}/{self.namespace}"

    def image(self, name):
        """The image as qemu-img names it."""
        return f"rbd:{self.spec}/{name}:conf={self.cluster.config}"

    def __truediv__(self, name):
        return self.folder / name


class Cluster:
    """A running cluster. `close` ends it, and nothing of it remains."""

    def __init__(self):
        say("a Ceph cluster")
        subprocess.run([ROOT / "tests/ceph/install.sh", "qemu-utils", "qemu-block-extra"], check=True, stdout=sys.stderr)
        command = ["cargo", "run", "-q", "-p", "vitrine-harness", "--bin", "vitrine-lab", "--locked", "ceph", POOL]
        self.process = subprocess.Popen([*TIED[:2], "TERM", "--", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.config = self.process.stdout.readline().strip()
        if not self.config:
            sys.exit("bench: the Ceph cluster does not start")

    def rbd(self, *arguments, check=True):
        return subprocess.run([*TIED, "rbd", "--conf", self.config, *arguments], check=check, capture_output=True, text=True).stdout

    def place(self, namespace, folder):
        """The namespace, made if it is not there."""
        if f'"{namespace}"' not in self.rbd("namespace", "ls", "--format", "json", POOL):
            self.rbd("namespace", "create", f"{POOL}/{namespace}")
        return Place(self, namespace, folder)

    def images(self, place):
        return self.rbd("ls", place.spec).split()

    def empty(self, place):
        """Removes the images, and what Vitrine keeps of them."""
        for name in self.images(place):
            image = f"{place.spec}/{name}"
            self.rbd("snap", "unprotect", f"{image}@snap", check=False)
            self.rbd("snap", "purge", "--no-progress", image)
            self.rbd("rm", "--no-progress", image)
        rados = ["rados", "--conf", self.config, "-p", POOL, "-N", place.namespace]
        left = subprocess.run([*TIED, *rados, "ls"], check=True, capture_output=True, text=True).stdout.split()
        for name in left:
            if name.startswith("vitrine"):
                subprocess.run([*TIED, *rados, "rm", name], check=True)

    def compare(self, ours, peer):
        """Fails unless both places have an image with the same disk."""
        names = [place.image(f"{name}") for place in (ours, peer) for name in self.images(place)]
        if len(names) != 2:
            sys.exit(f"bench: one image each was expected: {names}")
        done = subprocess.run([*TIED, POOL_QEMU, "compare", "-f", "raw", "-F", "raw", *names], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"bench: the outputs differ: {done.stdout}{done.stderr}")

    def close(self):
        self.process.terminate()
        self.process.wait()


def vitrine_import(source, *more):
    """An import of what `source` gives of the corpus."""
    def command(corpus, out):
        conf = Path(out.cluster.config)
        return [RELEASE / "vitrine", "import", source(corpus), "--store", f"rbd:{out.spec}", "--ceph-conf", conf, "--ceph-keyring",
                conf.with_name("keyring"), "--quiet", *more]
    return command, None


def vitrine_fetch(name):
    return vitrine_import(lambda corpus: corpus.link(name))


def qemu_convert(name, *more):
    def command(corpus, out):
        return [POOL_QEMU, "convert", *more, "-f", "qcow2", "-O", "raw", corpus.file(name), out.image("disk")]
    return command, None


def download_convert_import(name):
    def command(corpus, out):
        return [sys.executable, Path(__file__).with_name("bench.py"), "--by-scratch", corpus.link(name), out / "scratch", out / "disk",
                out.cluster.config, f"{out.spec}/disk"]
    return command, None


def import_by_scratch(url, scratch, disk, config, image):
    """Download with SHA-256, convert, and `rbd import`: what is done by hand and by many pipelines."""
    download(url, scratch)
    subprocess.run([*TIED, QEMU, "convert", "-f", "qcow2", "-O", "raw", scratch, disk], check=True)
    subprocess.run([*TIED, "rbd", "--conf", config, "import", "--no-progress", disk, image], check=True)


def rbd_import(name):
    def command(corpus, out):
        return ["rbd", "--conf", out.cluster.config, "import", "--no-progress", corpus.file(name), f"{out.spec}/disk"]
    return command, None


def sparse_sides():
    """Without a digest of the file's own bytes, as its peer."""
    return vitrine_import(lambda corpus: corpus.file(SPARSE), "--content-digest-only"), rbd_import(SPARSE)


ROWS = [
    Row("zlib qcow2 over HTTP → RBD", "qemu-img, local file, no hash", 1.5, vitrine_fetch("zlib.qcow2"), qemu_convert("zlib.qcow2")),
    Row("the same again", "qemu-img -m 16 -W, local file, no hash", None, vitrine_fetch("zlib.qcow2"),
        qemu_convert("zlib.qcow2", "-m", "16", "-W")),
    Row("the same once more", "download, sha256, convert, rbd import", 2.5, vitrine_fetch("zlib.qcow2"),
        download_convert_import("zlib.qcow2")),
    Row("raw file of 8 GiB with 1 GiB of data → RBD", "rbd import", None, *sparse_sides()),
    Row("the same, not in the page cache", "rbd import", 5.0, *sparse_sides(), cold=True),
]


def make_sparse(corpus):
    """The file of the last row, from the corpus' own data. It is made once, and stays with the corpus."""
    path = corpus.file(SPARSE)
    if path.exists():
        return
    made = path.with_suffix(".part")
    with open(corpus.file("base.raw"), "rb") as source, open(made, "wb") as target:
        target.truncate(SPARSE_BYTES)
        at = 0
        for piece in range(PIECES):
            at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            os.pwrite(target.fileno(), os.pread(source.fileno(), PIECE, at), piece * (SPARSE_BYTES // PIECES))
            at += PIECE
    made.rename(path)

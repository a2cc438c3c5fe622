#!/usr/bin/env python3
"""Measures Vitrine against qemu-img and against the way CDI imports, on one machine, in turns.

Usage: bench.py [ROUNDS [GROUP]]    `make bench`; 5 rounds of all rows unless told otherwise (make bench ROUNDS=9 GROUP=formats)

Prints a table in Markdown to stdout and says on stderr what it is doing. In every round each job is done once by Vitrine and
once by its peer, in alternating order. Sources are in the page cache; outputs are new files each time, and before each run
everything dirty is written out, so that nobody pays for another's writes. Vitrine's times include making its output durable
(fsync); qemu-img's do not, but for the rows that say so. Outputs are compared once per row. Everything written is removed again.
Exits 1 if a goal or the bound of memory was missed. Whatever way this ends, nothing it started goes on, and the next run removes
what a killed one left on the disk. What comes over HTTP is served by busybox's httpd, which lets the kernel send (sendfile): a
server's work is no part of this.
Python standard library only.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
CACHE = Path(os.environ.get("VITRINE_CACHE")
             or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitrine")
QEMU = CACHE / "bin/qemu-img"
ROUNDS = 5
BLOCK = 1 << 20
MEMORY_GOAL = 128  # MiB
INSPECTION_GOAL = 0.05  # of the time of an import


# Before a command: it ends with who started it, however that ends.
TIED = ["setpriv", "--pdeathsig", "KILL", "--"]
WORK = "bench-"  # a run's folder in the cache begins with this
OWNER = "owner"  # in a run's folder; the run holds a lock on it
SWEEP_AGE = 10  # seconds; a younger folder may be one whose run has not taken its lock yet


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
        return [sys.executable, __file__, "--as-cdi", corpus.link(name), out / "scratch", out / "disk"]
    return command, "disk"


def import_as_cdi_does(url, scratch, target):
    """Download to a scratch file with SHA-256, make it durable, convert it: CDI's phases TransferScratch and Convert."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url) as answer, open(scratch, "wb") as file:
        while piece := answer.read(BLOCK):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
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
GROUPS = {"main": MAIN_ROWS, "formats": FORMAT_ROWS, "all": MAIN_ROWS + FORMAT_ROWS}
# Once each, for the memory: what it is, the source, and what qemu-img compares the output with.
MEMORY_ROWS = [
    ("1 TiB virtual disk, zlib qcow2", "sparse-1t-zlib.qcow2", "sparse-1t-zlib.qcow2", "qcow2"),
    ("raw.xz -6 -T2, several blocks", "part-6.raw.xz", "part.raw", "raw"),
    ("raw.xz -9", "part-9.raw.xz", "part.raw", "raw"),
    ("raw.gz", "part.raw.gz", "part.raw", "raw"),
]


class Bench:
    """All rounds."""

    def __init__(self, corpus, work):
        self.corpus, self.work = corpus, Path(work)

    def run(self, job, name):
        """Runs a job into a fresh folder; gives the run and the output."""
        command, pattern = job
        out = self.work / name
        out.mkdir()
        (out / "store").mkdir()
        os.sync()
        run = measure(command(self.corpus, out))
        return run, next(out.glob(pattern))

    def clear(self, name):
        shutil.rmtree(self.work / name)

    def round(self, number, row):
        """Both sides once; gives both runs."""
        sides = [("ours", row.ours), ("peer", row.peer)]
        if number % 2:
            sides.reverse()
        runs, outputs = {}, {}
        for name, job in sides:
            runs[name], outputs[name] = self.run(job, name)
            if number > 0:
                self.clear(name)
        if number == 0:
            compare(outputs["ours"], outputs["peer"], row.output)
            self.clear("ours")
            self.clear("peer")
        say(f"round {number + 1}: {row.job}: {runs['ours'].wall:.2f} s, {row.peer_name}: {runs['peer'].wall:.2f} s")
        return runs["ours"], runs["peer"]

    def inspection(self, row):
        """Inspects what the row imports, if it does."""
        command = row.ours[0](self.corpus, Path("/nonexistent"))
        return measure([command[0], "inspect", command[2]]) if command[1] == "import" else None

    def memory(self, what, source, peer, peer_format):
        """One import whose memory counts; its time is there to be seen."""
        run, output = self.run(vitrine_import(source), "ours")
        subprocess.run([*TIED, QEMU, "compare", "-q", "-f", "raw", "-F", peer_format, output, self.corpus.file(peer)], check=True)
        self.clear("ours")
        say(f"{what}: {run.wall:.2f} s, {run.memory:.0f} MiB")
        return run


def compare(ours, peer, output):
    say("comparing the two outputs")
    done = subprocess.run([*TIED, QEMU, "compare", "-f", output, "-F", output, ours, peer], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"bench: the outputs differ: {done.stdout}{done.stderr}")


def print_tables(rows, results, inspections, memory, rounds):
    """Prints all that was measured. What was missed, a line each."""
    missed = print_speed(rows, results) + print_inspections(rows, results, inspections)
    print("\n| import over HTTP → store, once | Vitrine s | peak MiB |")
    print("| --- | --- | --- |")
    for (what, *_), run in zip(MEMORY_ROWS, memory):
        print(f"| {what} | {run.wall:.2f} | {run.memory:.0f} |")
    peak = max([run.memory for run in memory] + [run.memory for runs in results for run, _ in runs])
    if peak > MEMORY_GOAL:
        missed.append(f"peak memory: {peak:.0f} MiB, at most {MEMORY_GOAL}")
    print(f"\nPeak memory of Vitrine, all jobs: {peak:.0f} MiB (at most {MEMORY_GOAL}{'' if peak <= MEMORY_GOAL else ', missed'}).")
    print(f"\nMedians of {rounds} rounds; sources in the page cache, outputs new. Vitrine: sha256 of the source, content digest "
          "and fsync included (rows that read a local file: no sha256). Outputs equal to qemu-img's.")
    print(f"Machine: {os.cpu_count()} × {processor()}, {memory_gib()} GiB, Linux {platform.release()}, load "
          f"{os.getloadavg()[1]:.1f} over the last 5 minutes. {version(QEMU)}; {version(RELEASE / 'vitrine')}.", flush=True)
    return missed


def print_speed(rows, results):
    """Prints the table of the jobs that have a peer. What was missed, a line each."""
    missed = []
    print("| job | peer | Vitrine s | peer s | ratio | at least | Vitrine CPU s | peer CPU s | Vitrine peak MiB | peer peak MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row, runs in zip(rows, results):
        ours, peer = zip(*runs)
        walls = [statistics.median(run.wall for run in side) for side in (ours, peer)]
        cpus = [statistics.median(run.cpu for run in side) for side in (ours, peer)]
        memory = [max(run.memory for run in side) for side in (ours, peer)]
        ratio = walls[1] / walls[0]
        if row.goal and ratio < row.goal:
            missed.append(f"{row.job}, against {row.peer_name}: {ratio:.2f}×, at least {row.goal}×")
        print(f"| {row.job} | {row.peer_name} | {walls[0]:.2f} | {walls[1]:.2f} | {ratio:.2f}× | {verdict(ratio, row.goal)} "
              f"| {cpus[0]:.2f} | {cpus[1]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |")
    return missed


def print_inspections(rows, results, inspections):
    """Prints how long it takes to look at what is imported. What was missed, a line each."""
    missed = []
    print("\n| inspection over HTTP | inspection s | import s | share | at most |")
    print("| --- | --- | --- | --- | --- |")
    for row, runs, looks in zip(rows, results, inspections):
        if None in looks:
            continue
        look, whole = statistics.median(run.wall for run in looks), statistics.median(run.wall for run, _ in runs)
        # What is packed as a whole is unpacked to its end by inspection, too.
        goal = None if row.job.startswith(("raw.xz", "raw.gz")) else INSPECTION_GOAL
        share = look / whole
        if goal and share > goal:
            missed.append(f"inspection, {row.job}: {share:.1%} of the import, at most {goal:.0%}")
        bound = f"{goal:.0%}{'' if share <= goal else ' (missed)'}" if goal else "–"
        print(f"| {row.job.removesuffix(' over HTTP → store')} | {look:.3f} | {whole:.2f} | {share:.1%} | {bound} |")
    return missed


def verdict(ratio, goal):
    if goal is None:
        return "–"
    return f"{goal}×" if ratio >= goal else f"{goal}× (missed)"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_gib():
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30))


def version(program):
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def prepare():
    """The programs and the corpus; gives its folder."""
    say("building the release program")
    tied = ["setpriv", "--pdeathsig", "TERM", "--"]
    subprocess.run([*tied, "cargo", "build", "--release", "--locked", "--bin", "vitrine"], cwd=ROOT, check=True)
    say("the corpus")
    return subprocess.run([*tied, ROOT / "tests/images/corpus.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def warm(corpus, row):
    """Reads what both sides read once, so that no run is the first."""
    read = {part for command, _ in (row.ours, row.peer) for part in command(corpus, Path("/nonexistent"))}
    files = {corpus.file(str(part).rsplit("/", 1)[-1]) for part in read if str(part).startswith((str(corpus.folder), corpus.url))}
    for source in files:
        with open(source, "rb", buffering=0) as file:
            while file.read(16 * BLOCK):
                pass


def serve(folder):
    """Serves the folder on a free port of loopback; gives the server and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([*TIED, "busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", folder])
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}"
        if server.poll() is not None:
            break
        time.sleep(0.05)
    server.kill()
    sys.exit(f"bench: busybox httpd does not serve on port {port}")


def own(folder):
    """Holds the lock of a run's folder until the file that this gives is closed, at the latest when this process ends."""
    owner = open(folder / OWNER, "w")
    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return owner


def sweep():
    """Removes the folders of killed runs."""
    for folder in CACHE.glob(f"{WORK}*"):
        try:
            if time.time() - folder.stat().st_mtime > SWEEP_AGE and (folder / OWNER).is_file():
                with own(folder):
                    say(f"removing what a killed run left in {folder}")
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its run lives, or another one is sweeping
            continue


def measure_all(rows, corpus, work, rounds):
    """The runs of each row, the inspections of what they import, and the runs that count for their memory."""
    bench = Bench(corpus, work)
    results, inspections = [], []
    for row in rows:
        # Not all of them at once: together they are more than fits the page cache.
        warm(corpus, row)
        results.append([bench.round(number, row) for number in range(rounds)])
        inspections.append([bench.inspection(row) for _ in range(rounds)])
    return results, inspections, [bench.memory(*row) for row in MEMORY_ROWS]


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    rows = GROUPS[sys.argv[2] if len(sys.argv) > 2 else "all"]
    folder = prepare()
    # What is measured comes over loopback, past no proxy.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)
    sweep()
    server, url = serve(folder)
    try:
        # Beside the corpus, which is where there is room; never in /tmp, which may be memory.
        with tempfile.TemporaryDirectory(prefix=WORK, dir=CACHE) as work, own(Path(work)):
            results, inspections, memory = measure_all(rows, Corpus(folder, url), work, rounds)
    finally:
        server.kill()
        server.wait()
    missed = print_tables(rows, results, inspections, memory, rounds)
    for line in missed:
        say(f"missed: {line}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    if sys.argv[1:2] == ["--as-cdi"]:
        import_as_cdi_does(*sys.argv[2:])
    else:
        main()

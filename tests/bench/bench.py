#!/usr/bin/env python3
"""Measures Vitrine against qemu-img, against the way CDI imports and against `rbd import`, on one machine, in turns.

Usage: bench.py [ROUNDS [GROUP]]    `make bench`; 5 rounds of all rows unless told otherwise (make bench ROUNDS=9 GROUP=formats)

Groups: main, formats, pool. Prints a table in Markdown to stdout and says on stderr what it is doing. In every round each job is done
once by Vitrine and once by its peer, in alternating order. Sources are in the page cache, unless the row says otherwise; outputs are new
each time, and before each run everything dirty is written out, so that nobody pays for another's writes. Vitrine's times include making its output durable
(fsync); qemu-img's do not, but for the rows that say so. Outputs are compared once per row. Everything written is removed again.
Exits 1 if a goal or the bound of memory was missed. Whatever way this ends, nothing it started goes on, and the next run removes
what a killed one left on the disk. What comes over HTTP is served by busybox's httpd, which lets the kernel send (sendfile): a
server's work is no part of this.
Python standard library only.
"""

import contextlib
import fcntl
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
from pathlib import Path

import pool
from jobs import (CACHE, FORMAT_ROWS, MAIN_ROWS, MEMORY_ROWS, QEMU, RELEASE, ROOT, TIED, BLOCK, Corpus, import_as_cdi_does, measure, say,
                  vitrine_import)

ROUNDS = 5
MEMORY_GOAL = 128  # MiB
POOL_MEMORY_GOAL = 256  # of which Ceph's libraries take their share
INSPECTION_GOAL = 0.05  # of the time of an import
GROUPS = {"main": MAIN_ROWS, "formats": FORMAT_ROWS, "pool": pool.ROWS}
WORK = "bench-"  # a run's folder in the cache begins with this
OWNER = "owner"  # in a run's folder; the run holds a lock on it
SWEEP_AGE = 10  # seconds; a younger folder may be one whose run has not taken its lock yet


class Bench:
    """All rounds of jobs that write files."""

    inspects = True  # whether what is imported is inspected, too

    def __init__(self, corpus, work):
        self.corpus, self.work = corpus, Path(work)

    def run(self, job, name):
        """Runs a job into a fresh folder; gives the run and the output."""
        command, pattern = job
        out = self.place(name)
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
            if row.cold:
                cool(self, row)
            runs[name], outputs[name] = self.run(job, name)
            if number > 0:
                self.clear(name)
        if number == 0:
            say("comparing the two outputs")
            self.compare(outputs["ours"], outputs["peer"], row.output)
            self.clear("ours")
            self.clear("peer")
        say(f"round {number + 1}: {row.job}: {runs['ours'].wall:.2f} s, {row.peer_name}: {runs['peer'].wall:.2f} s")
        return runs["ours"], runs["peer"]

    def place(self, name):
        """Where a side writes."""
        return self.work / name

    def compare(self, ours, peer, output):
        """Fails unless both are the same disk."""
        done = subprocess.run([*TIED, QEMU, "compare", "-f", output, "-F", output, ours, peer], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"bench: the outputs differ: {done.stdout}{done.stderr}")

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


class PoolBench(Bench):
    """All rounds of jobs that write into a pool."""

    inspects = False

    def __init__(self, corpus, work, cluster):
        super().__init__(corpus, work)
        self.cluster = cluster

    def place(self, name):
        return self.cluster.place(name, self.work / name)

    def run(self, job, name):
        command, _ = job
        (self.work / name).mkdir()
        place = self.place(name)
        os.sync()
        return measure(command(self.corpus, place)), place

    def clear(self, name):
        self.cluster.empty(self.place(name))
        super().clear(name)

    def compare(self, ours, peer, _):
        self.cluster.compare(ours, peer)


def print_tables(rows, results, inspections, memory, rounds, most=MEMORY_GOAL):
    """Prints all that was measured of a group. What was missed, a line each."""
    missed = print_speed(rows, results)
    if inspections:
        missed += print_inspections(rows, results, inspections)
    if memory:
        print("\n| import over HTTP → store, once | Vitrine s | peak MiB |")
        print("| --- | --- | --- |")
    for (what, *_), run in zip(MEMORY_ROWS, memory):
        print(f"| {what} | {run.wall:.2f} | {run.memory:.0f} |")
    peak = max([run.memory for run in memory] + [run.memory for runs in results for run, _ in runs])
    if peak > most:
        missed.append(f"peak memory: {peak:.0f} MiB, at most {most}")
    print(f"\nPeak memory of Vitrine, all jobs: {peak:.0f} MiB (at most {most}{'' if peak <= most else ', missed'}).")
    print(f"\nMedians of {rounds} rounds; sources in the page cache, outputs new. Vitrine: sha256 of the source, content digest "
          "and fsync included (rows that read a local file: no sha256). Outputs equal to the peer's.")
    print(f"Machine: {os.cpu_count()} × {processor()}, {memory_gib()} GiB, Linux {platform.release()}, load "
          f"{os.getloadavg()[1]:.1f} over the last 5 minutes. {version(QEMU)}; {version(RELEASE / 'vitrine')}.\n", flush=True)
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


def sources(bench, row):
    """The files that both sides read."""
    corpus, nowhere = bench.corpus, bench.place("nowhere")
    read = {part for command, _ in (row.ours, row.peer) for part in command(corpus, nowhere)}
    return {corpus.file(str(part).rsplit("/", 1)[-1]) for part in read if str(part).startswith((str(corpus.folder), corpus.url))}


def warm(bench, row):
    """Reads them once, so that no run is the first."""
    for source in sources(bench, row):
        with open(source, "rb", buffering=0) as file:
            while file.read(16 * BLOCK):
                pass


def cool(bench, row):
    """Takes them out of the page cache."""
    for source in sources(bench, row):
        with open(source, "rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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


def measure_all(rows, bench, rounds):
    """The runs of each row, and the inspections of what they import."""
    results, inspections = [], []
    for row in rows:
        # Not all of them at once: together they are more than fits the page cache.
        warm(bench, row)
        results.append([bench.round(number, row) for number in range(rounds)])
        if bench.inspects:
            inspections.append([bench.inspection(row) for _ in range(rounds)])
    return results, inspections


def measure_group(group, corpus, work, rounds):
    """Measures a group and prints its tables; gives what was missed."""
    rows = GROUPS[group]
    if group != "pool":
        bench = Bench(corpus, work)
        results, inspections = measure_all(rows, bench, rounds)
        return print_tables(rows, results, inspections, [bench.memory(*row) for row in MEMORY_ROWS], rounds)
    pool.make_sparse(corpus)
    with contextlib.closing(pool.Cluster()) as cluster:
        results, _ = measure_all(rows, PoolBench(corpus, work, cluster), rounds)
    return print_tables(rows, results, [], [], rounds, POOL_MEMORY_GOAL)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    groups = sys.argv[2:3] or list(GROUPS)
    folder = prepare()
    # What is measured comes over loopback, past no proxy.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)
    sweep()
    server, url = serve(folder)
    missed = []
    try:
        # Beside the corpus, which is where there is room; never in /tmp, which may be memory.
        with tempfile.TemporaryDirectory(prefix=WORK, dir=CACHE) as work, own(Path(work)):
            for group in groups:
                missed += measure_group(group, Corpus(folder, url), work, rounds)
    finally:
        server.kill()
        server.wait()
    for line in missed:
        say(f"missed: {line}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    if sys.argv[1:2] == ["--as-cdi"]:
        import_as_cdi_does(*sys.argv[2:])
    elif sys.argv[1:2] == ["--by-scratch"]:
        pool.import_by_scratch(*sys.argv[2:])
    else:
        main()

#!/usr/bin/env python3
"""Fuzzes the decoders, each for so many minutes of CPU time, and prints a table of what came of it.

Usage: tests/fuzz/campaign.py run [--minutes N] [target ...]      10 minutes each, of all targets, one after the other
       tests/fuzz/campaign.py minimise [target ...]               the working corpus's new files into the tree, as few as do

Needs the nightly toolchain (rustup toolchain install nightly). Python standard library only. What a run found stays in
target/fuzz: corpus/<target> to go on from, findings/<target> for what made it stop, <target>.json for what was done. A run goes on where
the last one ended, until the minutes are full.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORK = TARGET / "fuzz"
TRIPLE = "x86_64-unknown-linux-gnu"
# What cargo-fuzz sets, except for `--cfg fuzzing`: crates leave checks out under it, and they are to be tested as they are used.
FLAGS = ("-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters "
         "-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address")
# A single allocation is bounded by the limits that the targets set; threads and quarantine of the sanitizer come on top in all.
LIMITS = ["-timeout=20", "-malloc_limit_mb=160", "-rss_limit_mb=2048", "-max_len=32768", "-detect_leaks=0"]
SLICE = 120  # seconds of wall time between looks at the CPU time
MAX_TREE_FILES = 32  # of a target, beside the hand-made ones: a replay takes a moment
MAX_TREE_FILE = 8 << 10  # bytes
NAMES = re.findall(r'Target \{ name: "(\w+)"', (HERE / "src/lib.rs").read_text())


def build():
    command = ["cargo", "+nightly", "build", "--locked", "--profile", "fuzz", "--target", TRIPLE, "-p", "vitrine-fuzz",
               "--features", "libfuzzer", "--bin", "vitrine-fuzz"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "RUSTFLAGS": FLAGS}, check=True)
    return TARGET / TRIPLE / "fuzz/vitrine-fuzz"


def fuzzer(program, name, arguments, log):
    """Runs libFuzzer on a target: exit status, and seconds of CPU time spent in the program itself."""
    # Threads that are about to end when the program does still hold what they have: that is no leak.
    env = {**os.environ, "VITRINE_FUZZ_TARGET": name, "ASAN_OPTIONS": "detect_leaks=0"}
    process = subprocess.Popen([program, *map(str, arguments)], env=env, stdout=log, stderr=log)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime


def tree(name):
    return [folder for folder in (HERE / "corpus" / name, HERE / "regressions" / name) if folder.is_dir()]


def run(program, name, minutes):
    corpus, findings = WORK / "corpus" / name, WORK / "findings" / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    book = WORK / f"{name}.json"
    so_far = json.loads(book.read_text()) if book.exists() else {"seconds": 0.0, "executions": 0, "edges": 0, "findings": 0}
    stopped = False
    while so_far["seconds"] < minutes * 60 and not stopped:
        with open(WORK / f"{name}.log", "w+", errors="replace") as log:
            status, used = fuzzer(program, name, [corpus, *tree(name), *LIMITS, f"-max_total_time={SLICE}", "-print_final_stats=1",
                                                  f"-artifact_prefix={findings}/"], log)
            log.seek(0)
            text = log.read()
        so_far["seconds"] += used
        so_far["executions"] += sum(map(int, re.findall(r"number_of_executed_units: (\d+)", text)))
        so_far["edges"] = max([so_far["edges"], *map(int, re.findall(r" cov: (\d+)", text))])
        if status:
            so_far["findings"] += 1
            kept = WORK / f"{name}.finding{so_far['findings']}.log"
            shutil.copy(WORK / f"{name}.log", kept)
            print(f"{name}: stopped with status {status}, see {kept} and {findings}", flush=True)
            stopped = True
        book.write_text(json.dumps(so_far))
    numbers = [f"{so_far['seconds'] / 60:.1f}", so_far["executions"], so_far["edges"], so_far["findings"]]
    print(f"| {name} | {' | '.join(map(str, numbers))} |", flush=True)
    return stopped


def minimise(program, name):
    """Adds to the tree files of the working corpus that reach code which the tree's do not, as few as do."""
    with tempfile.TemporaryDirectory() as new, open(WORK / f"{name}.merge.log", "w") as log:
        small = Path(new) / "small"
        merged = Path(new) / "merged"
        for folder in (small, merged):
            folder.mkdir()
        for folder in tree(name):
            for file in folder.iterdir():
                shutil.copy(file, merged / file.name)
        mine = {file.name for file in merged.iterdir()}
        for file in (WORK / "corpus" / name).iterdir():
            if file.stat().st_size <= MAX_TREE_FILE:
                shutil.copy(file, small / file.name)
        fuzzer(program, name, ["-set_cover_merge=1", "-use_counters=0", *LIMITS, merged, small], log)
        added = sorted((file for file in merged.iterdir() if file.name not in mine), key=lambda file: file.stat().st_size)
        for file in added[:MAX_TREE_FILES]:
            shutil.copy(file, HERE / "corpus" / name / file.name[:12])
        print(f"{name}: {min(len(added), MAX_TREE_FILES)} of {len(added)} files added")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "minimise"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("targets", nargs="*", metavar="target")
    options = parser.parse_intermixed_args()
    unknown = set(options.targets) - set(NAMES)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    program = build()
    if options.what == "minimise":
        for name in options.targets or NAMES:
            minimise(program, name)
        return
    print("| target | CPU minutes | executions | edges | findings |\n|---|---|---|---|---|", flush=True)
    found = sum(run(program, name, options.minutes) for name in options.targets or NAMES)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

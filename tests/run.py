#!/usr/bin/env python3
"""All checks and all tests, each once: formatting, lints, unit tests, the harness, every test program.

Usage: tests/run.py        `make test` and .ci/run call it. Python standard library only.

Sets up what the tests need (packages, test disk, Ceph, Kubernetes programs) beside the compilation. The last line is
"N passed, N failed, N skipped" over all test programs; a step that fails counts as one failed test, and a skipped test
fails the run. Passing output is short, failing output is shown in full.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEARTBEAT = 30  # seconds between signs of life of a long step
TEST_LIMIT = 2400  # seconds; every test program takes a fraction of it, so one that runs longer hangs
NEEDED = {
    "cargo": "Rust, of the version that Cargo.toml names",
    "cc": "a C compiler (Debian: build-essential)",
    "make": "GNU make (Debian: build-essential)",
    "go": "Go 1.26 or newer: the Kubernetes programs are built from source",
    "setpriv": "util-linux",
}
PREFIX = "vitrine-test-"  # of a run's folder, in the system's folder for temporary files
OWNER = "owner"  # in a run's folder; the run holds a lock on it
SWEEP_AGE = 10  # seconds; a younger folder may be one whose run has not taken its lock yet
PROXIES = [name for both in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (both, both.lower())]
FENCE = re.compile(r"^\s*//[/!]\s*```(.*)$", re.MULTILINE)
RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;", re.MULTILINE)
BEGAN = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", flush=True)


class Step:
    """A command with its output in a file, in a process group of its own, so that all of it can be ended."""

    running = []
    logs = None

    def __init__(self, title, command, cwd=ROOT, env=None):
        self.title = title
        self.began, self.ended = time.monotonic(), None
        name = re.sub(r"[^a-zA-Z0-9]+", "-", title)
        self.log = Path(Step.logs) / f"{name}.log"
        self.out = Path(Step.logs) / f"{name}.out"
        with open(self.log, "wb") as log, open(self.out, "wb") as out:
            # If this script is killed, the command is told to end.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *map(str, command)], cwd=cwd, env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True)
        Step.running.append(self)

    def wait(self, limit=None):
        """The exit status, once it has ended; says now and then that it goes on. None if it took longer than `limit`."""
        shown = time.monotonic()
        while self.process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            for step in Step.running:
                step.note_end()
            if now - shown >= HEARTBEAT:
                shown = now
                say(f"    {self.title}, {self.seconds():.0f} s: {self.last_line()}")
            if limit and self.seconds() > limit:
                self.end()
                return None
        self.note_end()
        Step.running.remove(self)
        return self.process.returncode

    def note_end(self):
        """Remembers when the step ended, which may be long before it is waited for."""
        if self.ended is None and self.process.poll() is not None:
            self.ended = time.monotonic()

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(timeout=20)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        Step.running.remove(self)

    def seconds(self):
        return (self.ended or time.monotonic()) - self.began

    def output(self):
        return self.out.read_text(errors="replace")

    def messages(self):
        return self.log.read_text(errors="replace")

    def last_line(self):
        # What is meant for people goes to standard error, except from test programs.
        newest = self.log if self.log.stat().st_size else self.out
        with open(newest, "rb") as file:
            file.seek(max(0, newest.stat().st_size - 2000))
            lines = [line for line in re.split(r"[\r\n]+", file.read().decode(errors="replace")) if line.strip()]
        return lines[-1].strip()[:100] if lines else "no output yet"


class Count:
    """What the last line will say."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.took = []  # (seconds, name) of the test programs

    def fail(self, step, why, show_output=True):
        """Counts a step that failed and shows all it wrote."""
        self.failed += 1
        say(f"FAILED: {step.title}: {why}")
        sys.stdout.write(step.messages())
        if show_output:
            sys.stdout.write(step.output())
        say(f"end of the output of: {step.title}")

    def close(self):
        if self.took:
            slowest = sorted(self.took, reverse=True)[:5]
            say("slowest test programs: " + ", ".join(f"{name} {seconds:.0f} s" for seconds, name in slowest))
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped", flush=True)
        sys.exit(0 if self.failed == 0 and self.skipped == 0 and self.passed > 0 else 1)


def check_machine(count):
    missing = [f"  {tool}: {what}" for tool, what in NEEDED.items() if not shutil.which(tool)]
    if missing:
        say("this machine lacks what the tests are built with:\n" + "\n".join(missing))
        count.failed += 1
        count.close()


def start(title, *command, **options):
    say(title)
    return Step(title, command, **options)


def done(count, step, show_output=True):
    """Whether the step succeeded."""
    status = step.wait()
    if status == 0:
        say(f"    {step.title}: ok, {step.seconds():.0f} s")
        return True
    count.fail(step, f"exit status {status}", show_output)
    return False


def check_scripts(count):
    """The shell scripts parse. Takes no time."""
    files = [file for file in ROOT.glob("tests/**/*.sh") if "target" not in file.parts] + [ROOT / ".ci/run"]
    return done(count, start(f"syntax of {len(files)} shell scripts", "bash", "-c", 'for f; do bash -n "$f" || exit; done',
                             "check", *files))


def build(count):
    """Formatting, lints, programs; the set-up runs beside them. The test programs as (name, path, folder, least)."""
    images = start("set-up: packages, qemu-img to compare with, Debian disk", "sh", "-c",
                   "tests/images/install.sh && exec tests/images/debian-disk.sh")
    ceph = start("set-up: Ceph", "tests/ceph/install.sh")
    prometheus = start("set-up: Prometheus", "tests/prometheus/install.sh")
    good = done(count, start("formatting", "cargo", "fmt", "--all", "--check"))
    good &= check_scripts(count)
    cargo = ["--workspace", "--locked"]
    tools = None
    if done(count, start("building vitrine-lab", "cargo", "build", *cargo, "--bin", "vitrine-lab")):
        # Niced: minutes of Go compilation the first time, and cargo is what everything waits for.
        tools = start("set-up: Kubernetes programs", "nice", "-n", "10", target() / "debug/vitrine-lab", "tools")
    good &= done(count, start("lints", "cargo", "clippy", *cargo, "--all-targets", "--", "-D", "warnings"))
    tests = start("building the tests", "cargo", "test", *cargo, "--no-run", "--message-format=json-render-diagnostics")
    good &= done(count, tests, show_output=False)
    ready = [done(count, step) for step in (images, ceph, prometheus, tools) if step]
    if not (good and all(ready) and tools):
        say("the tests are not run, because of the failures above")
        count.close()
    return programs(tests.output())


def target():
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def programs(messages):
    """The test programs that cargo has built, unit tests first, those that start a cluster last."""
    found = []
    for line in messages.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") != "compiler-artifact" or not message.get("executable") or not message["profile"]["test"]:
            continue
        what, folder = message["target"], Path(message["manifest_path"]).parent
        unit = "test" not in what["kind"]
        name = f"unit tests of {what['name']} ({'program' if 'bin' in what['kind'] else 'library'})" if unit else what["name"]
        if folder != ROOT and not unit:
            name = f"{folder.name} {name}"
        # Programs that only parse and call, and the harness, need not have unit tests.
        least = 0 if unit and what["name"] not in ("vitrine", "vitrine_engine") or "bin" in what["kind"] else 1
        found.append((name, message["executable"], folder, least, Path(what["src_path"]).resolve()))
    return sorted(found, key=lambda p: (not p[0].startswith("unit"), p[0]))


def check_complete(count, found):
    """A folder of tests that no manifest names would never run, and nobody would see it."""
    expected = {ROOT / "src/lib.rs", ROOT / "src/engine/lib.rs", *ROOT.glob("tests/*/main.rs"), *ROOT.glob("tests/harness/tests/*.rs")}
    for source in sorted(expected - {program[4] for program in found}):
        count.failed += 1
        say(f"FAILED: {source.relative_to(ROOT)} is no test program: give it a [[test]] entry in Cargo.toml")
    # Logs and the closing lines go by these names.
    names = [program[0] for program in found]
    for name in sorted({name for name in names if names.count(name) > 1}):
        count.failed += 1
        say(f"FAILED: {names.count(name)} test programs are called {name}: rename all but one")


def run_tests(count, name, program, folder, least):
    # Tests that kill what they started cannot always tidy up after it; what they leave goes with this folder.
    scratch = Path(tempfile.mkdtemp(prefix="t-", dir=Step.logs))
    step = start(f"tests: {name}", program, cwd=folder, env={"CARGO_MANIFEST_DIR": str(folder), "TMPDIR": str(scratch)})
    status = step.wait(TEST_LIMIT)
    shutil.rmtree(scratch, ignore_errors=True)
    count.took.append((step.seconds(), name))
    results = RESULT.findall(step.output())
    passed, failed, ignored = (sum(int(r[i]) for r in results) for i in range(3))
    count.passed += passed
    count.skipped += ignored
    if status is None:
        count.fail(step, f"still running after {TEST_LIMIT} s")
    elif status != 0:
        count.fail(step, f"exit status {status}, {failed} failed")
        count.failed += max(failed - 1, 0)
    elif passed < least:
        count.fail(step, f"{passed} tests ran, at least {least} must")
    else:
        say(f"    {name}: {passed} passed, {step.seconds():.0f} s" + (f", {ignored} SKIPPED" if ignored else ""))


def run_examples(count):
    """The examples in the documentation. Where there are none, asking cargo would take longer than looking."""
    sources = [*ROOT.glob("src/**/*.rs"), *ROOT.glob("tests/harness/src/**/*.rs")]
    # Every second fence closes a block.
    if all(what.strip() == "text" for source in sources for what in FENCE.findall(source.read_text())[::2]):
        return
    step = start("tests: examples in the documentation", "cargo", "test", "--workspace", "--locked", "--doc")
    if done(count, step):
        count.passed += sum(int(r[0]) for r in RESULT.findall(step.output()))
        count.skipped += sum(int(r[2]) for r in RESULT.findall(step.output()))


def own(folder):
    """Holds the lock of a run's folder until the file that this gives is closed, at the latest when this process ends."""
    owner = open(folder / OWNER, "w")
    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return owner


def sweep(parent):
    """Ends and removes what killed runs left: whatever was started with its temporary files in a folder that no run owns."""
    for folder in Path(parent).glob(f"{PREFIX}*"):
        try:
            about = folder.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < SWEEP_AGE or not (folder / OWNER).is_file():
                continue
            with own(folder):
                say(f"removing what a killed run left in {folder}")
                end_processes_of(folder)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its run lives, or another one is sweeping
            continue


def end_processes_of(folder):
    """Kills every process whose temporary files go to `folder`. Twice in a row none may be found: one may be starting another."""
    mark, calm = b"\0TMPDIR=" + os.fsencode(folder) + b"/", 0
    for _ in range(100):
        found = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if mark in environment_of(entry)]
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        calm = 0 if found else calm + 1
        if calm == 2:
            return
        time.sleep(0.05)


def environment_of(process):
    try:
        return b"\0" + (process / "environ").read_bytes()
    except OSError:  # it has ended
        return b""


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    count = Count()
    sweep(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=PREFIX) as logs, own(Path(logs)):
        Step.logs = logs
        try:
            check_machine(count)
            found = build(count)
            check_complete(count, found)
            # Set-up may have needed them; the tests' servers are on this machine.
            for name in PROXIES:
                os.environ.pop(name, None)
            for name, program, folder, least, _ in found:
                run_tests(count, name, program, folder, least)
            run_examples(count)
            count.close()
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(130)
        finally:
            for step in list(Step.running):
                step.end()


if __name__ == "__main__":
    main()

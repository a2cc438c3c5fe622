//! Runs the program and looks at what it did.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;
use tempfile::TempDir;
use vitrine_harness::qemu;

/// The program, ready for arguments. Without the machine's proxies: the tests' servers are on loopback.
pub fn vitrine<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vitrine"));
    command.args(arguments);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

/// A run that has ended.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    /// The same, if it exited with `code`.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// Runs it with `arguments`.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    vitrine(arguments).output().unwrap().into()
}

/// Runs it with `input` on its standard input.
pub fn run_with_input(arguments: &[&str], input: &[u8]) -> Ran {
    let mut command = vitrine(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // The program may end before it has read everything.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap().into()
    })
}

/// A file of the Debian test disk.
pub fn debian(name: &str) -> PathBuf {
    qemu::debian_disk().unwrap().join(name)
}

/// The hostile files, made once for all tests, with what is written about each.
pub fn hostile() -> (&'static Path, &'static [Value]) {
    static MADE: OnceLock<(TempDir, Vec<Value>)> = OnceLock::new();
    let (folder, cases) = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/hostile.py");
        let output = Command::new("python3").arg(script).arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let index = std::fs::read_to_string(folder.path().join("index.jsonl")).unwrap();
        let cases = index.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (folder, cases)
    });
    (folder.path(), cases)
}

/// `length` zeros as bzip2 packs them: a stream for each 64 MiB, in a row.
pub fn bzip2_of_zeros(folder: &Path, length: usize) -> Vec<u8> {
    const PART: usize = 64 << 20;
    let part = folder.join("part");
    std::fs::File::create(&part).unwrap().set_len(PART as u64).unwrap();
    let packed = Command::new("bzip2").arg("-9c").arg(&part).output().unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    packed.stdout.repeat(length / PART)
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Fails unless both hold the same disk.
pub fn assert_same_disk(a: &Path, a_format: &str, b: &Path, b_format: &str) {
    qemu::qemu_img(&["compare", "-f", a_format, "-F", b_format, a.to_str().unwrap(), b.to_str().unwrap()]).unwrap();
}

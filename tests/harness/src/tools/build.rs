//! Builds one family under a lock, into a private folder that gets its public name only when it is whole.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::family::Family;
use super::progress::Progress;
use crate::error::{Context, Error, Result};

/// The folder of the programs, in a family's folder.
const BIN: &str = "bin";
/// Go's folder for what it makes on the way, in the folder of the sources. The underscore hides it from Go.
const TEMPORARY: &str = "_tmp";
/// How often the progress line is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How many of Go's last lines an error shows: its errors come at the end, after thousands of package names.
const SHOWN_LINES: usize = 30;

/// The folder with the family's programs; builds them if no earlier run has. `tools` is the cache's folder for all families.
pub fn ensure(family: &Family, tools: &Path) -> Result<PathBuf> {
    let home = tools.join(format!("{}-{}", family.name, family.key(&go_version()?)));
    let bin = home.join(BIN);
    if bin.is_dir() {
        return Ok(bin);
    }
    fs::create_dir_all(tools).context(|| format!("make {}", tools.display()))?;
    let _lock = lock(&tools.join(format!("{}.lock", family.name)), family)?;
    if !bin.is_dir() {
        remove_leftovers(family, tools);
        build(family, tools, &home)?;
    }
    Ok(bin)
}

/// Go's version and target, which decide the result as much as the sources do.
fn go_version() -> Result<String> {
    let output = go(Path::new("/")).args(["env", "GOVERSION", "GOOS", "GOARCH"]).output().map_err(no_go)?;
    if !output.status.success() {
        return Err(Error::new(format!("go env failed: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn no_go(error: std::io::Error) -> Error {
    Error::new(format!(
        "cannot run go ({error}): the Kubernetes programs are built from source, so install Go 1.26 or newer and put it in PATH"
    ))
}

fn go(dir: &Path) -> Command {
    let mut command = Command::new("go");
    // No C compiler needed, no git asked, no go.work of a folder above.
    command
        .current_dir(dir)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        // Where a killed build's files are found again, and not in the machine's folder for temporary files.
        .env("GOTMPDIR", dir.join(TEMPORARY))
        .env("GOFLAGS", "-mod=readonly -buildvcs=false -trimpath");
    command
}

/// Two runs beside each other build once: the second waits here. The kernel drops the lock of a killed run.
fn lock(path: &Path, family: &Family) -> Result<File> {
    let file = File::create(path).context(|| format!("write {}", path.display()))?;
    if file.try_lock().is_err() {
        Progress::new(family).say("another run is building it; waiting for that one");
        file.lock().context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// The folders in which builds of this family work.
fn work_prefix(family: &Family) -> String {
    format!(".building-{}-", family.name)
}

/// Removes what killed builds left. The lock is held, so no build is under way.
fn remove_leftovers(family: &Family, tools: &Path) {
    let prefix = work_prefix(family);
    let entries = fs::read_dir(tools).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
        // At worst it goes on taking space.
        let _still_there = fs::remove_dir_all(entry.path());
    }
}

fn build(family: &Family, tools: &Path, home: &Path) -> Result<()> {
    let mut progress = Progress::new(family);
    progress.say("not in the cache yet: building it from source, once per machine");
    let work = tempfile::Builder::new().prefix(&work_prefix(family)).tempdir_in(tools);
    let work = work.context(|| format!("write in {}", tools.display()))?;
    let (source, whole) = (work.path().join("source"), work.path().join("whole"));
    let bin = whole.join(BIN);
    for dir in [&source, &bin, &source.join(TEMPORARY)] {
        fs::create_dir_all(dir).context(|| format!("make {}", dir.display()))?;
    }
    for (name, text) in family.files {
        fs::write(source.join(name), text).context(|| format!("write {name}"))?;
    }
    let total = packages(family, &source, &mut progress)?;
    progress.total(total);
    for (package, file) in family.programs {
        compile(family, package, &source, &bin.join(file), &mut progress)?;
    }
    for link in family.links {
        let file = family.programs.first().map_or("", |(_, file)| file);
        symlink(file, bin.join(link)).context(|| format!("link {link}"))?;
    }
    fs::rename(&whole, home).context(|| format!("rename to {}", home.display()))?;
    progress.done();
    Ok(())
}

/// How many packages the programs consist of. Asking this also downloads the modules.
fn packages(family: &Family, source: &Path, progress: &mut Progress) -> Result<usize> {
    let mut list = go(source);
    list.args(["list", "-deps"]).args(family.programs.iter().map(|(package, _)| package));
    let mut child = list.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(no_go)?;
    // Read beside the messages, or a full pipe would stop both.
    let packages = child.stdout.take().map(|mut stdout| {
        std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text.lines().count())
        })
    });
    follow(child, family, |line| {
        if line.starts_with("go: downloading") {
            progress.downloading();
        }
        progress.tick();
    })?;
    let counted = packages.and_then(|thread| thread.join().ok()).and_then(|result| result.ok());
    counted.ok_or_else(|| Error::new("the list of packages cannot be read"))
}

fn compile(family: &Family, package: &str, source: &Path, binary: &Path, progress: &mut Progress) -> Result<()> {
    let mut build = go(source);
    // -v names each package on standard error as its compilation begins.
    build.args(["build", "-v", "-ldflags", &family.linker_flags(), "-o"]).arg(binary).arg(package);
    let child = build.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(no_go)?;
    follow(child, family, |line| {
        if !line.is_empty() && !line.contains(' ') {
            progress.compiling();
        }
        progress.tick();
    })
}

/// Calls `each` for every line on the child's standard error, and with an empty line now and then while there is none.
fn follow(mut child: Child, family: &Family, mut each: impl FnMut(&str)) -> Result<()> {
    let lines = read_lines(&mut child);
    let mut last = Vec::new();
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                each(&line);
                last.push(line);
            }
            Err(RecvTimeoutError::Timeout) => each(""),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().context(|| "wait for go")?;
    if status.success() {
        return Ok(());
    }
    let shown = last.get(last.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default().join("\n");
    Err(Error::new(format!(
        "building {} {} failed ({status}). Go said at the end:\n{shown}",
        family.name,
        family.version()
    )))
}

fn read_lines(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(std::io::Result::ok).try_for_each(|line| sender.send(line).ok())
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const GO_MOD: &str = "module vitrine.test/tiny\n\ngo 1.26.0\n";

    const fn tiny(files: &'static [(&'static str, &'static str)]) -> Family {
        Family {
            name: "tiny",
            files,
            programs: &[("vitrine.test/tiny", "tiny")],
            links: &["other"],
            module: "none",
            version_package: None,
        }
    }

    static GOOD: Family =
        tiny(&[("go.mod", GO_MOD), ("main.go", "package main\n\nfunc main() { println(\"hello\") }\n")]);
    static BAD: Family = tiny(&[("go.mod", GO_MOD), ("main.go", "package main\n\nfunc main() { absent() }\n")]);

    fn entries(dir: &Path) -> Vec<String> {
        let names =
            fs::read_dir(dir).expect("read").flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn two_at_once_build_once_and_a_killed_build_is_cleared_away() {
        let cache = tempfile::tempdir().expect("a folder");
        let leftover = cache.path().join(".building-tiny-123");
        fs::create_dir_all(leftover.join("whole")).expect("make");
        let ask = || {
            thread::spawn({
                let cache = cache.path().to_owned();
                move || ensure(&GOOD, &cache).expect("built")
            })
        };
        let bins = [ask(), ask()].map(|thread| thread.join().expect("no panic"));
        assert_eq!(bins[0], bins[1]);
        let home = bins[0].parent().and_then(Path::file_name).expect("a name").to_string_lossy().into_owned();
        assert_eq!(entries(cache.path()), [home, "tiny.lock".to_owned()]);
        assert_eq!(entries(&bins[0]), ["other", "tiny"]);
        let output = Command::new(bins[0].join("other")).output().expect("run");
        assert_eq!(output.stderr, b"hello\n");

        let built = fs::metadata(bins[0].join("tiny")).and_then(|metadata| metadata.modified()).expect("a time");
        ensure(&GOOD, cache.path()).expect("found");
        assert_eq!(fs::metadata(bins[0].join("tiny")).and_then(|metadata| metadata.modified()).expect("a time"), built);
    }

    #[test]
    fn a_build_that_fails_says_why_and_leaves_nothing() {
        let cache = tempfile::tempdir().expect("a folder");
        let error = ensure(&BAD, cache.path()).expect_err("it does not compile").to_string();
        assert!(error.contains("undefined: absent"), "{error}");
        assert_eq!(entries(cache.path()), ["tiny.lock"]);
    }
}

//! qemu-img and qemu-io, the oracle.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder to make images in, and the programs to make them with.
pub struct Qemu {
    folder: tempfile::TempDir,
    programs: PathBuf,
}

impl Qemu {
    /// Finds the programs in the tests' cache.
    ///
    /// # Panics
    /// If they are not there: a test without its oracle has not passed.
    pub fn new() -> Self {
        let cache = env::var_os("VITRINE_CACHE")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache/vitrine")))
            .expect("neither VITRINE_CACHE nor HOME is set");
        let programs = cache.join("bin");
        for name in ["qemu-img", "qemu-io"] {
            let program = programs.join(name);
            assert!(program.exists(), "{} is missing: run tests/images/install.sh", program.display());
        }
        Self { folder: tempfile::tempdir().unwrap(), programs }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `qemu-img` or `qemu-io`, for what the other methods are not made for.
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(name))
    }

    /// Runs `qemu-img` with these arguments and gives its output.
    pub fn img(&self, arguments: &[&str]) -> String {
        self.run("qemu-img", arguments)
    }

    /// Runs `qemu-io` commands on an image.
    pub fn io(&self, format: &str, path: &Path, commands: &[String]) {
        let mut arguments = vec!["-f", format];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(path.to_str().unwrap());
        let output = self.run("qemu-io", &arguments);
        assert!(!output.contains("failed") && !output.contains("rror"), "qemu-io {arguments:?}: {output}");
    }

    /// Whether two images hold the same disk, as qemu-img sees them.
    pub fn assert_equal(&self, format: &str, image: &Path, raw: &Path) {
        self.img(&["compare", "-f", format, "-F", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
    }

    /// The size of the disk as `qemu-img info` tells it; `None` if it refuses the image.
    pub fn virtual_size(&self, format: &str, image: &Path) -> Option<u64> {
        let output =
            self.program("qemu-img").args(["info", "--output=json", "-f", format]).arg(image).output().unwrap();
        let info: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
        info.filter(|_| output.status.success()).and_then(|info| info["virtual-size"].as_u64())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.program(program).args(arguments).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
        text
    }
}

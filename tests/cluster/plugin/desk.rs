//! A person at a command line: the program as kubectl's plugin, with a kubeconfig of theirs, in a folder of their own.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::whole::{door::Door, site::Site};
use serde_json::Value;

/// The person's things.
pub struct Desk<'s, 'a> {
    pub site: &'s Site<'a>,
    pub folder: PathBuf,
    pub kubeconfig: PathBuf,
    data_url: Option<String>,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    /// The same, if it exited with `code`.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The same, if it says all of `parts` on standard error.
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` in: {}", self.stderr);
        }
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

impl<'s, 'a> Desk<'s, 'a> {
    /// That of an administrator, who has a client certificate.
    pub fn new(site: &'s Site<'a>) -> Self {
        Self::of(site, "admin", site.lab.plane.kubeconfig())
    }

    fn of(site: &'s Site<'a>, who: &str, kubeconfig: PathBuf) -> Self {
        let folder = site.lab.plane.scope().dir().join(format!("{}-desk-{who}", site.lab.namespace));
        std::fs::create_dir_all(&folder).unwrap();
        symlink(env!("CARGO_BIN_EXE_vitrine"), folder.join("kubectl-vitrine")).unwrap();
        Self { site, folder, kubeconfig, data_url: None }
    }

    /// That of somebody who has a token of service account `account` of tenant `t`, which has the roles `roles` there.
    pub async fn with_token(site: &'s Site<'a>, account: &str, roles: &[&str]) -> Self {
        site.token("t", account, roles).await;
        let kubeconfig = site.lab.plane.kubeconfig_for(&site.tenant("t"), account, None).await.unwrap();
        Self::of(site, account, kubeconfig)
    }

    /// The same, to which the data API of `door` is exposed.
    pub fn at(mut self, door: &Door<'_, '_>) -> Self {
        self.data_url = Some(format!("https://localhost:{}", door.address.port()));
        self
    }

    /// The program, called as kubectl calls it, with the tenant's namespace as the one that is meant.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, line: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.folder.join("kubectl-vitrine"));
        command.args(line).current_dir(&self.folder).env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.folder);
        command.env("VITRINE_NAMESPACE", &self.site.lab.namespace);
        if let Some(url) = &self.data_url {
            command.env("VITRINE_DATA_URL", url);
        }
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a verb in the tenant's namespace to its end.
    pub async fn run(&self, line: &[&str]) -> Ran {
        let namespace = self.site.tenant("t");
        let line = [line, &["--namespace", &namespace]].concat();
        self.run_anywhere(&line).await
    }

    /// The same with nothing added to the line.
    pub async fn run_anywhere(&self, line: &[&str]) -> Ran {
        tokio::process::Command::from(self.command(line)).kill_on_drop(true).output().await.unwrap().into()
    }

    /// A file in the person's folder.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// What lies in it besides the program.
    pub fn files(&self) -> Vec<String> {
        let names =
            std::fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "kubectl-vitrine" && !name.starts_with('.')).collect();
        names.sort();
        names
    }
}

/// The lines of a table, as words.
pub fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect()
}

/// The bytes of a file.
pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

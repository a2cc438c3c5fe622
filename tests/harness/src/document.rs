//! The commands that documents tell people to run, and a person who runs them, so that tests run the very same.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{ControlPlane, Tool, tools};

/// The block of commands in `document` that begins with `first`, as it stands there.
///
/// # Panics
/// When there is none.
pub fn commands(document: &str, first: &str) -> String {
    let lines = document.lines().skip_while(|line| !line.starts_with(&format!("    {first}")));
    let block = lines.take_while(|line| line.starts_with("    ")).map(|line| &line[4..]);
    let block: Vec<_> = block.collect();
    assert!(!block.is_empty(), "the document has no {first}");
    block.join("\n")
}

/// A person with a shell, in a folder that is also their home. In the path are kubectl, helm and what else they are given, and the
/// cluster is the one of their kubeconfig.
pub struct Desk<'p> {
    plane: &'p ControlPlane,
    folder: PathBuf,
    variables: BTreeMap<&'static str, String>,
}

impl<'p> Desk<'p> {
    /// That of the person `who`, an administrator of the cluster of `plane`.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub async fn new(plane: &'p ControlPlane, who: &str) -> Self {
        let folder = plane.scope().dir().join(format!("desk-{who}"));
        fs::create_dir_all(folder.join("bin")).expect("a folder for programs");
        let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        // A copy, whose context may be changed.
        let kubeconfig = folder.join("kubeconfig");
        fs::copy(plane.kubeconfig(), &kubeconfig).expect("a copy of the kubeconfig");
        let home = folder.display().to_string();
        let variables = [("PATH", path), ("KUBECONFIG", kubeconfig.display().to_string()), ("HOME", home)];
        let desk = Self { plane, folder, variables: variables.into() };
        let wanted = [Tool::Kubectl, Tool::Helm];
        let built = tokio::task::spawn_blocking(move || tools::ensure(&wanted)).await;
        let built = built.expect("no panic").expect("kubectl and helm");
        for (tool, name) in wanted.into_iter().zip(["kubectl", "helm"]) {
            desk.give(name, built.path(tool).expect("it was built"));
        }
        desk
    }

    /// Their folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts `program` into the path, called `name`.
    ///
    /// # Panics
    /// When there is one of that name.
    pub fn give(&self, name: &str, program: &Path) {
        symlink(program, self.folder.join("bin").join(name)).expect("a link to a program");
    }

    /// Sets a variable of the environment.
    pub fn set(&mut self, name: &'static str, value: String) {
        self.variables.insert(name, value);
    }

    /// Runs what the person types, who stops what is left in the background afterwards; gives what it printed.
    ///
    /// # Panics
    /// When any of it fails, with all that it said.
    pub async fn run(&self, script: &str) -> String {
        let mut command = self.plane.scope().command("bash");
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        let whole = format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}\n");
        command.envs(&self.variables).current_dir(&self.folder).args(["-c", &whole]);
        let done = tokio::process::Command::from(command).kill_on_drop(true).output().await.expect("bash");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(done.status.success(), "{script}\n{}{}", said(&done.stdout), said(&done.stderr));
        said(&done.stdout)
    }
}

//! What tests do to a control plane by command line: kubectl, helm, tokens, kubeconfigs, bare nodes.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::ControlPlane;
use super::access::Proof;
use crate::error::{Context, Error, Result};
use crate::tools::{self, Tool};

/// No test waits longer for one command; kubectl on its own would wait for ever for a server that does not answer.
const COMMAND_DEADLINE: Duration = Duration::from_secs(300);

/// What a command wrote and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    /// When it failed; the message holds what it wrote to standard error.
    pub fn success(self) -> Result<String> {
        match self.status.success() {
            true => Ok(self.stdout),
            false => Err(Error::new(format!("{}: {}{}", self.status, self.stderr, self.stdout))),
        }
    }
}

impl ControlPlane {
    /// Runs kubectl with every right.
    ///
    /// # Errors
    /// When it cannot be run. That it fails is no error: see [`Output::success`].
    pub async fn kubectl(&self, args: &[&str]) -> Result<Output> {
        self.run(Tool::Kubectl, args, None).await
    }

    /// Runs kubectl with `input` on its standard input, as for `apply -f -`.
    ///
    /// # Errors
    /// As [`ControlPlane::kubectl`].
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<Output> {
        self.run(Tool::Kubectl, args, Some(input)).await
    }

    /// Applies a manifest (server-side, so that what is stored is what was written).
    ///
    /// # Errors
    /// When kubectl or the API server refuses; the message holds its reason.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "--server-side", "-f", "-"], manifest).await?.success()
    }

    /// Runs helm with every right, building it first if need be.
    ///
    /// # Errors
    /// When it cannot be built or run.
    pub async fn helm(&self, args: &[&str]) -> Result<Output> {
        self.run(Tool::Helm, args, None).await
    }

    /// Makes a Node object that nothing stands behind.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_node(&self, name: &str) -> Result<()> {
        let manifest = format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}}}}}}}"
        );
        self.kubectl_with_input(&["create", "-f", "-"], &manifest).await?.success().map(drop)
    }

    /// A token of the service account `account`. With a node it carries the claim that a pod's token on that node carries, which
    /// admission policies see as `authentication.kubernetes.io/node-name`.
    ///
    /// # Errors
    /// When the account or the node does not exist.
    pub async fn token(&self, namespace: &str, account: &str, node: Option<&str>) -> Result<String> {
        let mut args = vec!["create", "token", account, "-n", namespace];
        if let Some(node) = node {
            args.extend(["--bound-object-kind", "Node", "--bound-object-name", node]);
        }
        Ok(self.kubectl(&args).await?.success()?.trim().to_owned())
    }

    /// Writes a kubeconfig for the service account, with a token as [`ControlPlane::token`] makes it, and returns its path.
    ///
    /// # Errors
    /// As [`ControlPlane::token`], or when the file cannot be written.
    pub async fn kubeconfig_for(&self, namespace: &str, account: &str, node: Option<&str>) -> Result<PathBuf> {
        let token = self.token(namespace, account, node).await?;
        let name = format!("{namespace}.{account}.{}.kubeconfig", node.unwrap_or("any"));
        self.access.write(&name, &self.access.kubeconfig(&self.url(), &Proof::Token(&token)))?;
        Ok(self.access.path(&name))
    }

    /// A command that talks to this control plane with every right, for what the methods here do not cover.
    ///
    /// # Errors
    /// When the tool cannot be built.
    pub fn command(&self, tool: Tool) -> Result<Command> {
        let tools = tools::ensure(&[tool])?;
        let mut command = self.scope.command(tools.path(tool)?);
        // Caches and configuration go to the scope's folder and not to the user's home.
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.scope.dir());
        for variable in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "KUBECACHEDIR"] {
            command.env_remove(variable);
        }
        Ok(command)
    }

    async fn run(&self, tool: Tool, args: &[&str], input: Option<&str>) -> Result<Output> {
        // Building helm takes minutes the first time.
        tokio::task::spawn_blocking(move || tools::ensure(&[tool])).await.context(|| "build the tools")??;
        let mut command = self.command(tool)?;
        command.args(args);
        let done = tokio::time::timeout(COMMAND_DEADLINE, run_to_end(command, input.unwrap_or_default())).await;
        let doing = || format!("{} {}", tool.name(), args.join(" "));
        done.context(|| format!("{} took longer than {} s", doing(), COMMAND_DEADLINE.as_secs()))?.context(doing)
    }
}

pub(super) async fn run_to_end(command: Command, input: &str) -> std::io::Result<Output> {
    let mut command = tokio::process::Command::from(command);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.kill_on_drop(true).spawn()?;
    let pipe = child.stdin.take();
    let feed = async {
        if let Some(mut pipe) = pipe {
            // A command that fails early does not read it; its own message says why.
            let _unread = pipe.write_all(input.as_bytes()).await;
        }
    };
    let (done, ()) = tokio::join!(child.wait_with_output(), feed);
    let std::process::Output { status, stdout, stderr } = done?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

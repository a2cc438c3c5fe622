//! `vitrine task list` and `logs`: what nodes are at, and what they wrote down about it. Tasks are Vitrine's own business, so this is for who administers it.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use vitrine_engine::error::Result;

use super::{
    EXIT_CODES,
    cluster::{ClusterFlags, Form, SiteFlag, duration},
    output::{printable, write},
    work::{self, interruption},
};
use crate::client::{logs, site, tasks};

/// Tasks of Vitrine's nodes.
#[derive(Args, Debug)]
pub struct TaskCommand {
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    site: SiteFlag,
    #[command(subcommand)]
    verb: Verb,
}

/// What to do with them.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List what nodes are at: imports, copies, removals, verifications
    #[command(after_help = EXIT_CODES, visible_alias = "ls")]
    List(List),
    /// Show what agents wrote down while they worked on an Image
    #[command(after_help = EXIT_CODES)]
    Logs(Logs),
}

impl TaskCommand {
    /// Does it. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        match &self.verb {
            Verb::List(verb) => work::run("task list", verb.run(&self.cluster, &self.site)),
            Verb::Logs(verb) => work::run("task logs", verb.run(&self.cluster, &self.site)),
        }
    }
}

/// List tasks. They stand in Vitrine's own namespace; --namespace says whose Images they are for.
#[derive(Args, Debug)]
struct List {
    /// For this Image only
    image: Option<String>,
    /// Of all namespaces' Images
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// On this node only
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl List {
    async fn run(&self, flags: &ClusterFlags, site: &SiteFlag) -> Result<ExitCode> {
        let cluster = flags.open().await?;
        let namespace = site::namespace(&cluster, site.vitrine_namespace.as_deref()).await?;
        let wanted = tasks::Filter {
            namespace: (!self.all_namespaces).then(|| cluster.namespace.clone()),
            image: self.image.clone(),
            node: self.node.clone(),
        };
        let tasks = tasks::list(&cluster, &namespace, &wanted).await?;
        self.output.print_list(&tasks, false)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Show what agents wrote down about a task, or about all tasks of an Image: those that have ended are gone, and their lines are not.
#[derive(Args, Debug)]
struct Logs {
    /// A task, or an Image of the namespace
    name: String,
    /// Wait for more until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Not older than this, as 90s, 10m or 2h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// Of the agent on this node only
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// As the agents wrote it, in JSON
    #[arg(long)]
    raw: bool,
}

impl Logs {
    async fn run(&self, flags: &ClusterFlags, site: &SiteFlag) -> Result<ExitCode> {
        let (cluster, cancel) = (flags.open().await?, interruption()?);
        let namespace = site::namespace(&cluster, site.vitrine_namespace.as_deref()).await?;
        let (subject, of_task) = logs::subject(&cluster, &namespace, &self.name).await?;
        let node = self.node.clone().or(of_task);
        let since = self.since.and_then(|since| since.try_into().ok());
        let reach = logs::Reach { follow: self.follow, since };
        let mut lines = logs::lines(&cluster, &namespace, subject, node.as_deref(), reach).await?;
        while let Some(Some(line)) = cancel.run_until_cancelled(lines.next()).await {
            let line = line?;
            let text = if self.raw { line.raw().to_owned() } else { printable(&line.text()) };
            write(&(text + "\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

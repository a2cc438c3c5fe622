//! `vitrine version`: of this program, and of what runs in the cluster.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use vitrine_engine::error::Result;

use super::{
    EXIT_CODES,
    cluster::{ClusterFlags, Form, SiteFlag},
    output::write,
    work,
};
use crate::client::{
    site,
    table::Sheet,
    version::{self, Versions},
};

/// Say of which version this program is, and operator and agents, where they can be asked.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Version {
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    site: SiteFlag,
    /// Of this program only: no cluster is asked
    #[arg(long)]
    client: bool,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Shape,
}

/// How versions are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// For programs
    Yaml,
}

impl Version {
    /// Says it.
    pub fn run(&self) -> ExitCode {
        work::run("version", self.tell())
    }

    async fn tell(&self) -> Result<ExitCode> {
        let found = if self.client { Ok(Versions::default()) } else { self.ask().await };
        let (versions, why) = match found {
            Ok(versions) => (versions, None),
            Err(error) => (Versions::default(), Some(error)),
        };
        match self.output {
            Shape::Table => write(&sheet(&versions))?,
            Shape::Json => Form::Json.print_value(&versions)?,
            Shape::Yaml => Form::Yaml.print_value(&versions)?,
        }
        // This program's own version is an answer, too.
        if let Some(why) = why {
            eprintln!("{} version: the cluster's is not known: {why}", super::program::name());
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn ask(&self) -> Result<Versions> {
        let cluster = self.cluster.open().await?;
        let namespace = site::namespace(&cluster, self.site.vitrine_namespace.as_deref()).await?;
        version::ask(&cluster, &namespace).await
    }
}

fn sheet(versions: &Versions) -> String {
    let mut sheet = Sheet::default();
    sheet.add("client", versions.client.clone());
    sheet.add("operator", versions.operator.clone().unwrap_or_default());
    let agents = versions.agents.iter().map(|(version, nodes)| format!("{version} on {nodes} nodes"));
    sheet.add("agents", agents.collect::<Vec<_>>().join(", "));
    sheet.add("kubernetes", versions.kubernetes.clone().unwrap_or_default());
    sheet.text()
}

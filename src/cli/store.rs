//! `vitrine store list`, `show` and `probe`: for administrators of the cluster, whose stores are.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use kube::{ResourceExt, api::ListParams};
use vitrine_engine::error::Result;

use super::{
    EXIT_CODES,
    cluster::{ClusterFlags, Form, duration},
    output::write,
    work::{self, interruption},
};
use crate::{
    api::{ImageStore, StoreReport},
    client::{explain::Explain as _, probe, view},
};

/// Stores of a cluster.
#[derive(Args, Debug)]
pub struct StoreCommand {
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(subcommand)]
    verb: Verb,
}

/// What to do with them.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List stores
    #[command(after_help = EXIT_CODES, visible_alias = "ls")]
    List(List),
    /// Show everything about stores, and what each node says of them
    #[command(after_help = EXIT_CODES)]
    Show(Show),
    /// Have every node look at a store now, and show what each finds
    #[command(after_help = EXIT_CODES)]
    Probe(Probe),
}

impl StoreCommand {
    /// Does it. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        let flags = &self.cluster;
        match &self.verb {
            Verb::List(verb) => work::run("store list", verb.run(flags)),
            Verb::Show(verb) => work::run("store show", verb.run(flags)),
            Verb::Probe(verb) => work::run("store probe", verb.run(flags)),
        }
    }
}

/// List stores.
#[derive(Args, Debug)]
struct List {
    /// With these labels, as for `kubectl -l`
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl List {
    async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let mut params = ListParams::default();
        if let Some(selector) = &self.selector {
            params = params.labels(selector);
        }
        let listed = flags.open().await?.stores().list(&params).await;
        let mut stores = listed.explain(|| "listing the ImageStores")?.items;
        stores.sort_by_key(ResourceExt::name_any);
        // They are of no namespace, so none is shown.
        self.output.print_list::<ImageStore>(&stores, false)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Show everything about stores.
#[derive(Args, Debug)]
struct Show {
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Show {
    async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let cluster = flags.open().await?;
        // What nodes say is shown to who may see it; the store's own status sums it up for others.
        let caches = probe::caches(&cluster).await.unwrap_or_default();
        for (number, name) in self.names.iter().enumerate() {
            let store = cluster.stores().get(name).await.explain(|| format!("reading ImageStore {name}"))?;
            if number > 0 && self.output != Form::Name {
                write(if self.output == Form::Yaml { "---\n" } else { "\n" })?;
            }
            let reports = view::store::reports_of(name, &caches);
            self.output.print_one(&store, || view::store::sheet(&store, &reports, Timestamp::now()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Have every node look at a store now. Nodes look by themselves every half minute; this does not wait for that. Exit code 1 if a node
/// does not reach it, or does not answer.
#[derive(Args, Debug)]
struct Probe {
    /// The store
    name: String,
    /// How long to wait for answers
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// How to show what they say
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Probe {
    async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let cluster = flags.open().await?;
        let answers = probe::probe(&cluster, &self.name, self.timeout, &interruption()?).await?;
        match self.output {
            Form::Table | Form::Wide => write(&view::store::reported(&answers.reports, Timestamp::now()))?,
            Form::Name => write(&names(&answers.reports))?,
            Form::Json | Form::Yaml => self.output.print_value(&by_node(&answers.reports))?,
        }
        for (node, report) in &answers.silent {
            let ago = crate::client::text::age(report.probed_at.0, Timestamp::now());
            eprintln!("node {node} has not answered; what it said {ago} ago was: {}", told(report));
        }
        if !answers.complete && answers.silent.is_empty() {
            eprintln!("not every node that ought to reach it has answered: see `{} doctor`", super::program::name());
        }
        let good = answers.complete && answers.reports.iter().all(|(_, report)| report.ready);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn told(report: &StoreReport) -> &str {
    match (report.message.as_str(), report.ready) {
        ("", true) => "ready",
        ("", false) => "not ready",
        (message, _) => message,
    }
}

fn names(reports: &[(String, StoreReport)]) -> String {
    let names: Vec<_> = reports.iter().map(|(node, _)| format!("node/{node}")).collect();
    names.join("\n") + "\n"
}

fn by_node(reports: &[(String, StoreReport)]) -> Vec<serde_json::Value> {
    reports.iter().map(|(node, report)| serde_json::json!({ "node": node, "report": report })).collect()
}

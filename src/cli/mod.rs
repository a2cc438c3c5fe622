//! The command line: one file for each verb, thin.
//!
//! Verbs that need no cluster are carried out here, and those for people in one by `client`. `operator` and `agent` are only parsed here:
//! `main` hands them on, because this module must not know the controller or the agent.

mod agent;
mod bounds;
mod ceph;
mod checksum;
mod clone;
mod cluster;
mod completion;
mod convert;
mod crds;
mod doctor;
mod expected;
mod image;
mod import;
mod input;
mod inspect;
mod operator;
mod output;
mod program;
mod progress;
mod store;
mod task;
mod version;
mod work;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use agent::Agent;
pub use checksum::Checksum;
pub use clone::{Children, Cloning};
pub use completion::Completion;
pub use convert::Convert;
pub use crds::Crds;
pub use doctor::Doctor;
pub use image::ImageCommand;
pub use import::Import;
pub use inspect::Inspect;
pub use operator::{AwaitAgents, Operator};
pub use store::StoreCommand;
pub use task::TaskCommand;
pub use version::Version;

const EXIT_CODES: &str = "Exit codes:
  0    done; `inspect`: the image is accepted
  1    failed, or (`inspect`) it could not be told; the message says what, where, and what to do
  2    the command line is wrong
  3    the image is refused; the message or `reasons` names the rule
  130  interrupted; nothing unfinished was left behind, or the message says how to go on";

/// An image service for virtual machines that lives in Kubernetes.
///
/// `inspect`, `convert`, `import`, `checksum`, `clone`, `children` and `crds` need no Kubernetes. `image`, `store`, `task`, `doctor` and `version`
/// talk to the cluster of your kubeconfig; with this program in the PATH as `kubectl-vitrine` they are `kubectl vitrine image` and so on.
#[derive(Debug, Parser)]
#[command(name = "vitrine", version, about, max_term_width = 120, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

impl Cli {
    /// What this process was called with. A wrong command line ends it, with 2.
    pub fn of_process() -> Self {
        let matches = Self::command().bin_name(program::name()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Images of a cluster: list, show, create, set, copy, delete, …
    Image(ImageCommand),
    /// Stores of a cluster: list, show, probe.
    Store(StoreCommand),
    /// Tasks of the nodes: list, logs.
    Task(TaskCommand),
    /// Find what is wrong with an installation, and say what to do.
    Doctor(Doctor),
    /// Say of which version this program and the cluster's Vitrine are.
    Version(Version),
    /// Print a completion script for a shell.
    Completion(Completion),
    /// Say what an image is, and whether and why it would be refused.
    #[command(after_help = EXIT_CODES)]
    Inspect(Inspect),
    /// Write an image as a file in any format that is written.
    #[command(after_help = EXIT_CODES)]
    Convert(Convert),
    /// Import an image into a store, in one pass, as an agent does.
    #[command(after_help = EXIT_CODES)]
    Import(Import),
    /// Compute digests of images, or of what a guest sees in them.
    #[command(after_help = EXIT_CODES)]
    Checksum(Checksum),
    /// Make a copy-on-write clone of an object in a pool of Ceph.
    #[command(after_help = EXIT_CODES)]
    Clone(Cloning),
    /// List the clones of an object in a pool of Ceph.
    #[command(after_help = EXIT_CODES)]
    Children(Children),
    /// Run the agent of one node.
    Agent(Box<Agent>),
    /// Print the definitions of the custom resources.
    Crds(Crds),
    /// Run the operator.
    Operator(Operator),
    /// Wait until the operator has rolled the agents out.
    AwaitAgents(AwaitAgents),
}

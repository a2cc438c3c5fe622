//! The command line: one file for each verb, thin.
//!
//! Verbs that need no cluster are carried out here. `operator` and `agent` are only parsed here: `main` hands them on, because this
//! module must not know the controller or the agent.

mod agent;
mod bounds;
mod ceph;
mod checksum;
mod clone;
mod convert;
mod crds;
mod import;
mod input;
mod inspect;
mod operator;
mod output;
mod progress;
mod work;

use clap::{Parser, Subcommand};

pub use agent::Agent;
pub use checksum::Checksum;
pub use clone::{Children, Cloning};
pub use convert::Convert;
pub use crds::Crds;
pub use import::Import;
pub use inspect::Inspect;
pub use operator::{AwaitAgents, Operator};

const EXIT_CODES: &str = "Exit codes:
  0    done; `inspect`: the image is accepted
  1    failed, or (`inspect`) it could not be told; the message says what, where, and what to do
  2    the command line is wrong
  3    the image is refused; the message or `reasons` names the rule
  130  interrupted; nothing unfinished was left behind";

/// An image service for virtual machines that lives in Kubernetes.
///
/// `inspect`, `convert`, `import`, `checksum`, `clone`, `children` and `crds` need no Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "vitrine", version, about, max_term_width = 120, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
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

//! The command line: one file for each verb, thin.
//!
//! Verbs that need no cluster are carried out here. `operator` and `agent` are only parsed here: `main` hands them on, because this
//! module must not know the controller or the agent.

mod crds;
mod operator;

use clap::{Parser, Subcommand};

pub use crds::Crds;
pub use operator::Operator;

/// An image service for virtual machines that lives in Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "vitrine", version, about, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the definitions of the custom resources.
    Crds(Crds),
    /// Run the operator.
    Operator(Operator),
}

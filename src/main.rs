//! The `vitrine` program: parse, call, exit.

use std::process::ExitCode;

use clap::Parser as _;
use vitrine::cli::{Cli, Verb};

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Crds(crds) => crds.run(),
    }
}

//! `vitrine image …`: Images of a cluster, one file for each group of verbs that belong together.

mod change;
mod create;
mod declare;
mod download;
mod look;
mod remove;
mod upload;
mod way;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use way::Way;

use super::{EXIT_CODES, cluster::ClusterFlags, work};

/// Images of a cluster.
#[derive(Args, Debug)]
pub struct ImageCommand {
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(subcommand)]
    verb: Verb,
}

/// What to do with them.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List Images
    #[command(after_help = EXIT_CODES, visible_alias = "ls")]
    List(look::List),
    /// Show everything about Images: what was found, where they are kept, why not, what happened
    #[command(after_help = EXIT_CODES)]
    Show(look::Show),
    /// Declare an Image whose bytes come from a URL or are uploaded later
    #[command(after_help = EXIT_CODES)]
    Create(Box<create::Create>),
    /// Send a file to a new Image, or to one that waits for it, and wait until it is stored
    #[command(after_help = EXIT_CODES)]
    Upload(Box<upload::Upload>),
    /// Fetch an Image's data into a file
    #[command(after_help = EXIT_CODES)]
    Download(Box<download::Download>),
    /// The same as download, as openstack calls it
    #[command(after_help = EXIT_CODES)]
    Save(Box<download::Download>),
    /// Set properties, tags, labels and switches
    #[command(after_help = EXIT_CODES)]
    Set(change::Set),
    /// Remove properties, tags, labels and switches
    #[command(after_help = EXIT_CODES)]
    Unset(change::Unset),
    /// Delete Images with all of their data
    #[command(after_help = EXIT_CODES, visible_alias = "rm")]
    Delete(remove::Delete),
    /// Serve Images' data to nobody, and keep it
    #[command(after_help = EXIT_CODES)]
    Deactivate(change::Switch),
    /// Serve Images' data again
    #[command(after_help = EXIT_CODES)]
    Reactivate(change::Switch),
    /// Keep an Image in more stores
    #[command(after_help = EXIT_CODES)]
    Copy(change::Copy),
    /// Begin the import of an Image again, or from another URL
    #[command(after_help = EXIT_CODES)]
    Import(change::Import),
}

impl ImageCommand {
    /// Does it. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        let flags = &self.cluster;
        match &self.verb {
            Verb::List(verb) => work::run("image list", verb.run(flags)),
            Verb::Show(verb) => work::run("image show", verb.run(flags)),
            Verb::Create(verb) => work::run("image create", verb.run(flags)),
            Verb::Upload(verb) => work::run("image upload", verb.run(flags)),
            Verb::Download(verb) => work::run("image download", verb.run(flags)),
            Verb::Save(verb) => work::run("image save", verb.run(flags)),
            Verb::Set(verb) => work::run("image set", verb.run(flags)),
            Verb::Unset(verb) => work::run("image unset", verb.run(flags)),
            Verb::Delete(verb) => work::run("image delete", verb.run(flags)),
            Verb::Deactivate(verb) => work::run("image deactivate", verb.run(flags, true)),
            Verb::Reactivate(verb) => work::run("image reactivate", verb.run(flags, false)),
            Verb::Copy(verb) => work::run("image copy", verb.run(flags)),
            Verb::Import(verb) => work::run("image import", verb.run(flags)),
        }
    }
}

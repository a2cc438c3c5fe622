//! `vitrine clone` and `vitrine children`: copy-on-write clones of what a store keeps in a pool of Ceph.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use vitrine_engine::error::Result;

use super::{
    ceph::{Connection, ImageName, Location},
    output::{Output, Rows},
    work,
};

/// The clone has the object's bytes at once, and takes room only for what is written to it. As long as it is there, its object is not
/// removed: `rbd flatten` makes it independent.
#[derive(Args, Debug)]
pub struct Cloning {
    /// The object to clone, by its location rbd://FSID/POOL[/NAMESPACE]/IMAGE/snap or as POOL[/NAMESPACE]/IMAGE
    object: Location,
    /// The image to make, in any pool of the same cluster: POOL[/NAMESPACE]/NAME
    target: ImageName,
    #[command(flatten)]
    connection: Connection,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Those in the trash too: they hold the object like any other.
#[derive(Args, Debug)]
pub struct Children {
    /// The object, by its location rbd://FSID/POOL[/NAMESPACE]/IMAGE/snap or as POOL[/NAMESPACE]/IMAGE
    object: Location,
    #[command(flatten)]
    connection: Connection,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A clone that was made.
#[derive(Serialize)]
struct Cloned {
    /// What it was made of.
    parent: String,
    /// Where it is.
    url: String,
}

impl Rows for Cloned {
    fn rows(&self) -> Vec<(&'static str, String)> {
        vec![("clone", self.url.clone()), ("of", self.parent.clone())]
    }
}

/// The clones of an object.
#[derive(Serialize)]
struct Family {
    /// The object.
    parent: String,
    /// Its clones, as `rbd` names them.
    children: Vec<String>,
}

impl Rows for Family {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let names = ["clones"].into_iter().chain(std::iter::repeat(""));
        let children = if self.children.is_empty() { vec!["none".to_owned()] } else { self.children.clone() };
        std::iter::once(("object", self.parent.clone())).chain(names.zip(children)).collect()
    }
}

impl Cloning {
    /// Makes the clone and prints where it is. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        work::run("clone", self.make())
    }

    async fn make(&self) -> Result<ExitCode> {
        let store = self.connection.open(&self.object).await?;
        // Takes milliseconds, and half of it could not be told from all of it.
        let url = store.clone_image(&self.object.key, &self.target.place(), &self.target.name).await?;
        self.output.print(&Cloned { parent: self.object.url(&store), url })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Children {
    /// Prints them. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        work::run("children", self.list())
    }

    async fn list(&self) -> Result<ExitCode> {
        let store = self.connection.open(&self.object).await?;
        let children = store.children(&self.object.key).await?;
        self.output.print(&Family { parent: self.object.url(&store), children })?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `vitrine image set`, `unset`, `deactivate`, `reactivate`, `copy` and `import`: what changes an Image that is there.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use vitrine_engine::{error::Result, model::Digest};

use super::{create::until_ready, declare::Marks};
use crate::{
    api::Image,
    cli::cluster::{ClusterFlags, Form, WaitFlags, pair},
    client::{
        change::{self, Change, OtherSource},
        images,
    },
};

/// Set properties, tags, labels and switches. What is not named stays as it is.
#[derive(Args, Debug)]
pub struct Set {
    /// The Image
    name: String,
    #[command(flatten)]
    marks: Marks,
    /// An annotation of Kubernetes; may be given several times
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = pair)]
    annotations: Vec<(String, String)>,
    /// Refuse to delete it
    #[arg(long)]
    protected: bool,
    /// Allow to delete it
    #[arg(long, conflicts_with = "protected")]
    unprotected: bool,
    /// How many revisions are kept, the current one included
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..=10))]
    history: Option<i64>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Set {
    /// Sets.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let set =
            |pairs: &[(String, String)]| pairs.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        let change = Change {
            properties: set(&self.marks.properties),
            labels: set(&self.marks.labels),
            annotations: set(&self.annotations),
            tags: self.marks.tags.clone(),
            protected: (self.protected || self.unprotected).then_some(self.protected),
            history: self.history,
            ..Change::default()
        };
        apply(flags, &self.name, "changed", self.output, |image| change.patch(image)).await
    }
}

/// Remove properties, tags, labels and switches.
#[derive(Args, Debug)]
pub struct Unset {
    /// The Image
    name: String,
    /// A property to remove; may be given several times
    #[arg(long = "property", value_name = "KEY")]
    properties: Vec<String>,
    /// A tag to remove; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A label of Kubernetes to remove; may be given several times
    #[arg(long = "label", value_name = "KEY")]
    labels: Vec<String>,
    /// An annotation of Kubernetes to remove; may be given several times
    #[arg(long = "annotation", value_name = "KEY")]
    annotations: Vec<String>,
    /// Allow to delete it
    #[arg(long)]
    protected: bool,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Unset {
    /// Removes.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let none = |keys: &[String]| keys.iter().map(|key| (key.clone(), None)).collect();
        let change = Change {
            properties: none(&self.properties),
            labels: none(&self.labels),
            annotations: none(&self.annotations),
            untags: self.tags.clone(),
            protected: self.protected.then_some(false),
            ..Change::default()
        };
        apply(flags, &self.name, "changed", self.output, |image| change.patch(image)).await
    }
}

/// Serve Images' data to nobody, or to who may have it again. Nothing of it is removed.
#[derive(Args, Debug)]
pub struct Switch {
    /// The Images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Switch {
    /// Switches.
    pub async fn run(&self, flags: &ClusterFlags, deactivated: bool) -> Result<ExitCode> {
        let change = Change { deactivated: Some(deactivated), ..Change::default() };
        let done = if deactivated { "deactivated" } else { "reactivated" };
        for name in &self.names {
            apply(flags, name, done, self.output, |image| change.patch(image)).await?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Keep an Image in more stores. Its data is copied from where it is; the source is not asked again.
#[derive(Args, Debug)]
pub struct Copy {
    /// The Image
    name: String,
    /// A store that shall keep it too; may be given several times
    #[arg(long = "store", value_name = "NAME", required_unless_present = "all_stores")]
    stores: Vec<String>,
    /// Keep it in every store that is not read-only, those made later included
    #[arg(long, conflicts_with = "stores")]
    all_stores: bool,
    #[command(flatten)]
    wait: WaitFlags,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Copy {
    /// Asks for copies.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let patch = |image: &Image| {
            if self.all_stores { Ok(change::all_stores()) } else { change::more_stores(image, &self.stores) }
        };
        let said = ["to be copied", "copied"];
        change_and_wait(flags, &self.name, said, (self.output, self.wait), patch, |_| true).await
    }
}

/// Begin an import again that has failed for good, or import the next revision from another URL. The revision that is there goes on
/// serving until the next one is verified.
#[derive(Args, Debug)]
pub struct Import {
    /// The Image
    name: String,
    /// The http or https URL that the agents fetch it from now
    #[arg(long, value_name = "URL", visible_alias = "uri")]
    url: Option<String>,
    /// What the bytes as received must hash to, as sha256:HEX; what was declared for the last URL does not count
    #[arg(long, value_name = "DIGEST", requires = "url")]
    checksum: Option<Digest>,
    /// URL of a checksum file as sha256sum writes it
    #[arg(long, value_name = "URL", requires = "url")]
    checksum_url: Option<String>,
    #[command(flatten)]
    wait: WaitFlags,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Import {
    /// Asks for an import.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let now = jiff::Timestamp::now().to_string();
        let other = self.url.as_ref().map(|url| OtherSource {
            url: url.clone(),
            checksum: self.checksum.as_ref().map(ToString::to_string),
            checksum_url: self.checksum_url.clone(),
        });
        let patch = |_: &Image| Ok(other.as_ref().map_or_else(|| change::retry(&now), OtherSource::patch));
        // A request to retry changes no generation: status says by itself which one it has heard.
        let heard = |image: &Image| {
            let last = image.status.as_ref().and_then(|status| status.last_handled_retry.as_ref());
            other.is_some() || last == Some(&now)
        };
        let said = ["to be imported", "imported"];
        change_and_wait(flags, &self.name, said, (self.output, self.wait), patch, heard).await
    }
}

async fn apply(
    flags: &ClusterFlags,
    name: &str,
    done: &str,
    output: Form,
    patch: impl Fn(&Image) -> Result<Value>,
) -> Result<ExitCode> {
    let image = images::change(&flags.open().await?, name, patch).await?;
    output.tell(&image, done)?;
    Ok(ExitCode::SUCCESS)
}

async fn change_and_wait(
    flags: &ClusterFlags,
    name: &str,
    [asked, done]: [&str; 2],
    (output, wait): (Form, WaitFlags),
    patch: impl Fn(&Image) -> Result<Value>,
    fits: impl Fn(&Image) -> bool,
) -> Result<ExitCode> {
    let cluster = flags.open().await?;
    let image = images::change(&cluster, name, patch).await?;
    if !wait.wait {
        output.tell(&image, asked)?;
        return Ok(ExitCode::SUCCESS);
    }
    output.tell(&until_ready(&cluster, name, wait, fits).await?, done)?;
    Ok(ExitCode::SUCCESS)
}

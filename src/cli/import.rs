//! `vitrine import`: exactly what an agent does with an image, on this machine, without a cluster.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, ValueHint};
use serde::Serialize;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::{ContainerFormat, Digest, DiskFormat, ObjectKey, Properties},
    pipeline::{self, ConvertJob, Imported, Progress, Target},
    store::{
        Store,
        filesystem::{FilesystemOptions, FilesystemStore},
    },
};

use super::{
    bounds::Bounds,
    ceph::Connection,
    convert::Form,
    expected::Expected,
    input::{Fetching, Input},
    inspect::property_rows,
    output::{Output, Rows, size},
    progress::Shown,
    work::{self, interruption, workers},
};

/// Fetches, unpacks, checks, decodes, digests and publishes in one pass, with the digest of the bytes as received and of what a
/// guest sees. For trying an image before it is declared, for filling a store beforehand, and for measuring.
#[derive(Args, Debug)]
pub struct Import {
    /// A file, an http or https URL, or - for standard input
    source: String,
    /// Folder of a filesystem store, of which an empty one becomes a store; or `rbd:POOL[/NAMESPACE]`, a pool of a Ceph cluster
    #[arg(long, value_name = "FOLDER|rbd:POOL", value_hint = ValueHint::DirPath)]
    store: PathBuf,
    /// Name of the object in the store: lower-case letters, digits and `-` [default: a random one]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    expected: Expected,
    /// What the source's bytes must hash to, as algorithm:hex; may be given several times
    #[arg(long = "checksum", value_name = "DIGEST")]
    checksums: Vec<Digest>,
    /// Of a local file with nothing around its disk, compute only the digest of what a guest sees: holes are not even read then
    #[arg(long, conflicts_with_all = ["checksums", "container_disk"])]
    content_digest_only: bool,
    /// Show no progress and no result
    #[arg(short, long)]
    quiet: bool,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    ceph: Connection,
    #[command(flatten)]
    fetching: Fetching,
    #[command(flatten)]
    bounds: Bounds,
}

impl Import {
    /// Imports and prints the result. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        work::run("import", self.import())
    }

    async fn import(&self) -> Result<ExitCode> {
        let output = self.form.checked()?;
        let store = self.store().await?;
        let key = self.key()?;
        if self.name.is_some() {
            check_free(&*store, &key).await?;
        }
        let progress = Arc::new(Progress::default());
        let shown = Shown::start(&progress, self.quiet);
        let imported = self.import_as(key, Target { store, output }, &progress).await?;
        drop(shown);
        if !self.quiet {
            self.output.print(&Outcome::new(&imported)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn import_as(&self, key: ObjectKey, target: Target, progress: &Arc<Progress>) -> Result<Imported> {
        let input = Input::parse(&self.source)?;
        if self.content_digest_only {
            let job = self.direct(&input, key, target)?;
            return pipeline::convert(job, progress, &interruption()?).await;
        }
        let job = pipeline::Import {
            source: input.source(&self.fetching, !self.checksums.is_empty())?,
            disk_format: self.expected.format,
            container_format: self.expected.container_format,
            container_disk: self.expected.container_disk.clone(),
            checksums: self.checksums.clone(),
            request: None,
            key,
            attempt: 1,
            targets: vec![target],
            require_all: true,
            permit: None,
            limits: self.bounds.limits(),
            scratch: std::env::temp_dir(),
            workers: workers(),
        };
        pipeline::import(&job, progress, &interruption()?).await
    }

    /// The job that reads a file only where it has data.
    fn direct(&self, input: &Input, key: ObjectKey, target: Target) -> Result<ConvertJob> {
        let bare = self.expected.container_format.is_none_or(|format| format == ContainerFormat::Bare);
        match input {
            Input::File(path) if bare && pipeline::is_plain(path)? => Ok(ConvertJob {
                path: path.clone(),
                disk_format: self.expected.format,
                target,
                key,
                limits: self.bounds.limits(),
                workers: workers(),
            }),
            _ => {
                let message = format!(
                    "{} has to be read from end to end: --content-digest-only is for local files with nothing around their disk",
                    self.source
                );
                Err(Error::new(Kind::InvalidInput, message))
            }
        }
    }

    async fn store(&self) -> Result<Arc<dyn Store>> {
        match self.store.to_str().and_then(|store| store.strip_prefix("rbd:")) {
            Some(place) => Ok(Arc::new(self.ceph.open_place(place).await?)),
            None => Ok(Arc::new(FilesystemStore::open("filesystem", &self.store, &FilesystemOptions::default())?)),
        }
    }

    fn key(&self) -> Result<ObjectKey> {
        match &self.name {
            None => key(),
            Some(name) => ObjectKey::new(name, 1).ok_or_else(|| {
                let message = format!("`{name}` cannot be an object's name: use up to 64 of a-z, 0-9 and -");
                Error::new(Kind::InvalidInput, message)
            }),
        }
    }
}

/// An agent adopts what an earlier attempt published; a person who names an object that is there means another one.
async fn check_free(store: &dyn Store, key: &ObjectKey) -> Result<()> {
    match store.stat(key).await {
        Ok(stat) => {
            let message = format!("{} is there already: choose another --name, or leave it out", stat.url);
            Err(Error::new(Kind::AlreadyExists, message))
        }
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A key that nothing else has.
///
/// # Errors
/// None that can happen.
pub fn key() -> Result<ObjectKey> {
    let name = format!("cli-{:032x}", rand::random::<u128>());
    ObjectKey::new(&name, 1).ok_or_else(|| Error::new(Kind::Internal, format!("{name} is no object name")))
}

/// What became of an import or a conversion.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// What the source's disk format was.
    disk_format: DiskFormat,
    /// What was around it.
    container_format: ContainerFormat,
    /// What that said of the machine.
    #[serde(skip_serializing_if = "Properties::is_empty")]
    properties: Properties,
    /// Size of the guest's disk in bytes.
    virtual_size: u64,
    /// Bytes received.
    size: u64,
    /// Their digests.
    digests: Vec<Digest>,
    /// Digest of what the guest sees.
    content_digest: Digest,
    /// Where it is.
    url: String,
    /// Length of what was written, holes included.
    length: u64,
    /// Bytes that it takes.
    allocated_size: u64,
}

impl Outcome {
    /// What `imported`, which had one target, says.
    ///
    /// # Errors
    /// What that target said.
    pub fn new(imported: &Imported) -> Result<Self> {
        let stat = imported.published.iter().find_map(|published| published.result.as_ref().ok());
        let stat = stat.ok_or_else(|| Error::new(Kind::Internal, "nothing was published"))?;
        Ok(Self {
            disk_format: imported.disk_format,
            container_format: imported.container_format,
            properties: imported.properties.clone(),
            virtual_size: imported.virtual_size,
            size: imported.received.length,
            digests: imported.received.digests.clone(),
            content_digest: imported.content_digest.clone(),
            url: stat.url.clone(),
            length: stat.image.length,
            allocated_size: stat.allocated_size,
        })
    }
}

impl Rows for Outcome {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![
            ("disk format", self.disk_format.to_string()),
            ("container format", self.container_format.to_string()),
            ("virtual size", size(self.virtual_size)),
            ("size", size(self.size)),
        ];
        rows.extend(property_rows(&self.properties));
        rows.extend(self.digests.iter().map(|digest| ("digest", digest.to_string())));
        rows.extend([
            ("content digest", self.content_digest.to_string()),
            ("written to", self.url.clone()),
            ("length", size(self.length)),
            ("allocated", size(self.allocated_size)),
        ]);
        rows
    }
}

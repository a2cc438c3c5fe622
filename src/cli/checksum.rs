//! `vitrine checksum`: digests of bytes as they are, or of what a guest sees in them.

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use futures::TryStreamExt as _;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::{Digest, DigestAlgorithm, Limits, OutputFormat},
    pipeline::{self, Import, Progress, Target},
    source::Source,
    store::discard::Discard,
    verify::DigestSet,
};

use super::{
    bounds::Bounds,
    import::key,
    input::{Fetching, Input},
    output::{printable, write},
    work::{self, interruption, workers},
};

/// Without --content, prints what md5sum, sha256sum and their kin do, and `sha256sum --check` reads it. With several algorithms each
/// line names its own. With --content, the digest does not change with the format: a qcow2, its raw conversion and the same raw
/// compressed give the same one.
#[derive(Args, Debug)]
pub struct Checksum {
    /// Files, http or https URLs, or - for standard input
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Algorithms, separated by commas: md5, sha1, sha256, sha512, blake3
    #[arg(short, long, value_delimiter = ',', default_value = "sha256", conflicts_with = "content")]
    algorithm: Vec<DigestAlgorithm>,
    /// The digest of what a guest sees
    #[arg(long)]
    content: bool,
    #[command(flatten)]
    fetching: Fetching,
    #[command(flatten)]
    bounds: Bounds,
}

impl Checksum {
    /// Prints a line for each image and algorithm. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        work::run("checksum", self.print_digests())
    }

    async fn print_digests(&self) -> Result<ExitCode> {
        for image in &self.images {
            let source = Input::parse(image)?.source(&self.fetching, false)?;
            let name = printable(image);
            if self.content {
                write(&format!("{}  {name}\n", content(source, self.bounds.limits()).await?))?;
                continue;
            }
            for digest in self.digests(source.as_ref()).await? {
                write(&self.line(&digest, &name))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// As the algorithm's own tool prints it, or with the algorithm where there are several.
    fn line(&self, digest: &Digest, name: &str) -> String {
        if self.algorithm.len() > 1 {
            return format!("{} ({name}) = {}\n", digest.algorithm().name().to_uppercase(), digest.hex());
        }
        format!("{}  {name}\n", digest.hex())
    }

    async fn digests(&self, source: &dyn Source) -> Result<Vec<Digest>> {
        let cancel = interruption()?;
        let mut set = DigestSet::new(self.algorithm.iter().copied());
        let read = async {
            let mut stream = source.open().await?.stream;
            while let Some(piece) = stream.try_next().await? {
                set.update(&piece);
            }
            Ok::<_, Error>(())
        };
        match cancel.run_until_cancelled(read).await {
            Some(result) => result?,
            None => return Err(Error::new(Kind::Cancelled, "interrupted")),
        }
        Ok(set.finish().digests)
    }
}

/// The content digest, by doing all of an import but keeping anything.
///
/// # Errors
/// What is wrong with the image.
pub async fn content(source: Arc<dyn Source>, limits: Limits) -> Result<Digest> {
    let job = Import {
        source,
        disk_format: None,
        container_format: None,
        container_disk: None,
        checksums: Vec::new(),
        request: None,
        key: key()?,
        attempt: 1,
        targets: vec![Target { store: Arc::new(Discard), output: OutputFormat::RAW }],
        require_all: true,
        permit: None,
        limits,
        scratch: std::env::temp_dir(),
        workers: workers(),
    };
    let imported = pipeline::import(&job, &Arc::new(Progress::default()), &interruption()?).await?;
    Ok(imported.content_digest)
}

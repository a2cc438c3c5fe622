//! `vitrine image download`, and `save`, which is what it is called elsewhere.

use std::{
    io::{IsTerminal as _, stdout},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use clap::{Args, ValueHint};
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::Limits,
    pipeline::Progress,
    source::FileSource,
};

use super::way::{Way, link_for};
use crate::{
    api::data::DATA,
    cli::{checksum, cluster::ClusterFlags, program, progress::Shown, work::interruption},
    client::{
        connect::Cluster,
        data::download::{Download as Fetching, Offer, Received},
        images,
        text::{lasting, short_size},
    },
};

/// Fetch an Image's data as it is stored. The file appears under its name when it is whole and proven: by the digest of its bytes where that
/// is known, else by what a guest sees in it.
///
/// A connection that breaks is opened again by itself. Ctrl-C leaves FILE.part, and the same command goes on with it.
#[derive(Args, Debug)]
pub struct Download {
    /// The Image
    name: String,
    /// The file to write, or - for standard output [default: the Image's name and its format, as debian.raw]
    #[arg(short = 'O', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Keep what came though nothing proves it but its length
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    way: Way,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Download {
    /// Fetches it.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let to_stdout = self.file.as_ref().is_some_and(|file| file.as_os_str() == "-");
        if to_stdout && stdout().is_terminal() {
            let message =
                "standard output is a terminal, which an image only confuses: name a file, or a program with |";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let cluster = flags.open().await?;
        let image = images::get(&cluster, &self.name).await?;
        let (progress, cancel) = (Arc::new(Progress::default()), interruption()?);
        let opening = link_for(&self.way, &cluster, &image, DATA);
        let interrupted = || Error::new(Kind::Cancelled, "interrupted before the first byte");
        let mut link = cancel.run_until_cancelled(opening).await.ok_or_else(interrupted)??;
        let location = image.status.as_ref().and_then(|status| status.locations.first());
        link.door().node = location.and_then(|location| location.node.clone());
        let mut fetching = Fetching { link: &mut link, progress: &progress, cancel: &cancel };
        let shown = Shown::start(&progress, self.quiet);
        let fetched = if to_stdout { self.pipe(&mut fetching).await } else { self.keep(&mut fetching).await };
        drop(shown);
        link.close().await;
        match fetched {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(self.how_to_go_on(error, flags, &cluster, to_stdout)),
        }
    }

    async fn pipe(&self, fetching: &mut Fetching<'_>) -> Result<()> {
        let offer = fetching.offer().await?;
        fetching.pipe(&mut tokio::io::stdout(), offer).await
    }

    async fn keep(&self, fetching: &mut Fetching<'_>) -> Result<()> {
        let began = Instant::now();
        let offer = fetching.offer().await?;
        let target = self.file.clone().unwrap_or_else(|| format!("{}.{}", self.name, offer.format).into());
        let received = fetching.fetch(&target, offer, self.force).await?;
        let offer = received.offer.clone();
        let received = self.prove(received).await?;
        received.keep(self.force)?;
        if !self.quiet {
            let (size, took) = (short_size(offer.length), lasting(began.elapsed().as_secs()));
            eprintln!("{}: {size}, {}, in {took}", target.display(), offer.format);
        }
        Ok(())
    }

    /// Where the agent knows no digest of the bytes, what a guest sees in them must be what the Image says.
    async fn prove(&self, received: Received) -> Result<Received> {
        let Offer { content_digest, .. } = &received.offer;
        let Some(expected) = content_digest.clone().filter(|_| !received.proven && !self.no_verify) else {
            return Ok(received);
        };
        let source = Arc::new(FileSource::new(received.path()));
        let found = checksum::content(source, Limits::default()).await;
        match found {
            Ok(found) if found.to_string() == expected => Ok(received),
            Ok(found) => {
                received.discard();
                let message = format!(
                    "a guest would see {found} in what came, and {expected} was announced: it is thrown away; try again"
                );
                Err(Error::new(Kind::Io, message))
            }
            Err(error) => Err(error.context("what came cannot be proven (--no-verify keeps it all the same)")),
        }
    }

    fn how_to_go_on(&self, error: Error, flags: &ClusterFlags, cluster: &Cluster, to_stdout: bool) -> Error {
        if !matches!(error.kind(), Kind::Cancelled | Kind::Unavailable) || to_stdout {
            return error;
        }
        let mut words = vec!["image".to_owned(), "download".to_owned(), self.name.clone()];
        if let Some(file) = &self.file {
            words.extend(["--file".to_owned(), file.display().to_string()]);
        }
        words.extend(flags.words(cluster));
        words.extend(self.way.words());
        Error::new(error.kind(), format!("{error}\nto go on with it: {}", program::line(words)))
    }
}

//! `vitrine image upload`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use clap::{Args, ValueHint};
use serde_json::{Value, json};
use vitrine_engine::{
    error::{Error, Kind, Result},
    pipeline::Progress,
};

use super::{
    create::until_ready,
    declare::{Declared, FromUrl},
    way::{Way, link_for},
};
use crate::{
    api::{Image, data::UPLOAD},
    cli::{
        cluster::{ClusterFlags, Form, WaitFlags},
        program,
        progress::Shown,
        work::interruption,
    },
    client::{
        change,
        connect::Cluster,
        data::{
            fingerprint,
            upload::{Before, Upload as Sending},
        },
        images,
        text::{lasting, short_size},
        wait::{Standing, Waiting, given_up, standing},
    },
};

/// On an Image: what tells the file that is being uploaded to it from others.
const ANNOTATION_FILE: &str = "vitrine.dev/upload-file";

/// Send a file or what comes through a pipe, and wait until it is stored. The bytes are inspected, checked, converted and stored while they
/// arrive. An Image of that name is made if there is none; one that waits for the rest of this very file is gone on with.
///
/// A connection that breaks is opened again by itself. Ctrl-C leaves what was sent for an hour, and the same command goes on with it.
#[derive(Args, Debug)]
pub struct Upload {
    /// The file, or - for standard input
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// The Image [default: the file's name without its ending]
    name: Option<String>,
    /// Go on with an upload that something else has begun, if its size is that of this file
    #[arg(long)]
    resume: bool,
    /// Give up what was sent before, and begin at the first byte
    #[arg(long, conflicts_with = "resume")]
    restart: bool,
    #[command(flatten)]
    declared: Declared,
    #[command(flatten)]
    way: Way,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// How to show the Image
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// What is sent.
struct Input {
    length: Option<u64>,
    fingerprint: Option<String>,
}

/// What was not sent, and why not.
struct Unsent {
    error: Error,
    /// No byte of it has left here, now or before.
    untouched: bool,
}

impl From<Error> for Unsent {
    fn from(error: Error) -> Self {
        Self { error, untouched: false }
    }
}

impl Upload {
    /// Sends it.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let input = self.input()?;
        let name = self.name()?;
        let cluster = flags.open().await?;
        let (image, before) = self.image(&cluster, &name, &input).await?;
        let began = Instant::now();
        let mut sent = Box::pin(self.send(&cluster, &image, &input, before)).await;
        if let Err(Unsent { error, untouched: true }) = &sent
            && error.kind() != Kind::Cancelled
            && let Ok(image) = images::get(&cluster, &name).await
            && let Some(why) = given_up(&image)
        {
            // What another command had sent before was refused a moment ago, and the Image did not say so yet.
            let image = self.try_again(&cluster, &name, &input, &why).await?;
            sent = Box::pin(self.send(&cluster, &image, &input, Before::GoOn)).await;
        }
        if let Err(unsent) = sent {
            return Err(self.how_to_go_on(unsent.error, &name, flags, &cluster));
        }
        if !self.quiet {
            let (size, took) = (input.length.map(short_size), lasting(began.elapsed().as_secs()));
            eprintln!("sent {} in {took}", size.unwrap_or_else(|| "all".to_owned()));
        }
        let wait = WaitFlags { wait: true, timeout: self.way.timeout };
        let stored = |image: &Image| image.status.as_ref().is_some_and(|status| status.revision.is_some());
        let image = until_ready(&cluster, &name, wait, stored).await?;
        self.output.print_list(&[image], false)?;
        Ok(ExitCode::SUCCESS)
    }

    fn is_pipe(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    fn input(&self) -> Result<Input> {
        if self.is_pipe() {
            if self.resume {
                let message = "what comes through a pipe cannot be gone on with: name a file";
                return Err(Error::new(Kind::InvalidInput, message));
            }
            return Ok(Input { length: None, fingerprint: None });
        }
        let (length, fingerprint) = fingerprint::of(&self.file)?;
        if length == 0 {
            return Err(Error::new(Kind::InvalidInput, format!("{} is empty", self.file.display())));
        }
        Ok(Input { length: Some(length), fingerprint: Some(fingerprint) })
    }

    fn name(&self) -> Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let derived = name_of(&self.file).filter(|_| !self.is_pipe());
        derived
            .ok_or_else(|| Error::new(Kind::InvalidInput, "say what the Image shall be called: image upload FILE NAME"))
    }

    /// The Image that takes it, and what is to be done with what it has been sent before.
    async fn image(&self, cluster: &Cluster, name: &str, input: &Input) -> Result<(Image, Before)> {
        let Some(image) = images::find(cluster, name).await? else {
            let mut image = self.declared.image(&cluster.namespace, name, &FromUrl::default())?;
            if let Some(fingerprint) = &input.fingerprint {
                let annotations = image.metadata.annotations.get_or_insert_default();
                annotations.insert(ANNOTATION_FILE.to_owned(), fingerprint.clone());
            }
            let image = images::create(cluster, &image, false).await?;
            if !self.quiet {
                eprintln!("made Image {name} in namespace {}", cluster.namespace);
            }
            return Ok((image, Before::GoOn));
        };
        if image.spec.source.upload.is_none() {
            let message =
                format!("Image {name} is there, and its source is another one than an upload: choose another name");
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        if image.status.as_ref().is_some_and(|status| status.revision.is_some() && status.attempt.is_none()) {
            let message =
                format!("Image {name} has its data already; choose another name for other data, or delete it first");
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        self.note_ignored(&image)?;
        let same =
            image.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_FILE)) == input.fingerprint.as_ref();
        if let Standing::Stalled(why, _) = standing(&image) {
            return Ok((self.try_again(cluster, name, input, &why).await?, Before::GoOn));
        }
        Ok((image, if same { Before::GoOn } else { Before::Refuse }))
    }

    /// Says so if the Image is there and was declared otherwise than the flags do.
    fn note_ignored(&self, image: &Image) -> Result<()> {
        let of = |declared: &Declared| declared.image("", "", &FromUrl::default()).map(|image| image.spec);
        let (asked, plain) = (of(&self.declared)?, of(&Declared::default())?);
        if asked != plain && asked != image.spec {
            let program = program::name();
            eprintln!(
                "Image {} is there, and stays as it was declared: `{program} image set` and `image copy` change it",
                image.metadata.name.as_deref().unwrap_or_default()
            );
        }
        Ok(())
    }

    /// Has an import that came to nothing begin again, and waits until the operator has heard that.
    async fn try_again(&self, cluster: &Cluster, name: &str, input: &Input, why: &str) -> Result<Image> {
        eprintln!("Image {name} did not go on ({why}): trying again");
        let now = jiff::Timestamp::now().to_string();
        let patch = mark(input, change::retry(&now));
        images::change(cluster, name, |_| Ok(patch.clone())).await?;
        let (progress, cancel) = (Progress::default(), interruption()?);
        let waiting = Waiting { cluster, name, limit: self.way.timeout, progress: &progress, cancel: &cancel };
        waiting.heard(&now).await
    }

    async fn send(
        &self,
        cluster: &Cluster,
        image: &Image,
        input: &Input,
        before: Before,
    ) -> std::result::Result<(), Unsent> {
        let name = image.metadata.name.clone().unwrap_or_default();
        let (progress, cancel) = (Arc::new(Progress::default()), interruption()?);
        let opening = link_for(&self.way, cluster, image, UPLOAD);
        let interrupted = || Error::new(Kind::Cancelled, "interrupted before the first byte");
        let mut link = cancel.run_until_cancelled(opening).await.ok_or_else(interrupted)??;
        link.door().node = image.status.as_ref().and_then(|status| status.attempt.as_ref()?.node.clone());
        let shown = Shown::start(&progress, self.quiet);
        let mut sending = Sending {
            cluster,
            name: &name,
            link: &mut link,
            progress: &progress,
            cancel: &cancel,
            limit: self.way.timeout,
            mark: (before == Before::Refuse).then(|| mark(input, json!({ "metadata": { "annotations": {} } }))),
        };
        let before = match before {
            _ if self.restart => Before::GiveUp,
            Before::Refuse if self.resume => Before::GoOn,
            before => before,
        };
        let sent = if let Some(length) = input.length {
            sending.send_file(&self.file, length, before).await
        } else {
            let ready = if self.restart { sending.begin_anew().await } else { Ok(()) };
            match ready {
                Ok(()) => sending.send_stream(tokio::io::stdin()).await,
                Err(error) => Err(error),
            }
        };
        drop(shown);
        link.close().await;
        let untouched = progress.snapshot().received == 0;
        sent.map_err(|error| Unsent { error, untouched })
    }

    /// What was interrupted or broke off, with the command that goes on with it.
    fn how_to_go_on(&self, error: Error, name: &str, flags: &ClusterFlags, cluster: &Cluster) -> Error {
        let resumable = matches!(error.kind(), Kind::Cancelled | Kind::Unavailable) && !self.is_pipe();
        if !resumable {
            return error;
        }
        let mut words = vec!["image".to_owned(), "upload".to_owned(), self.file.display().to_string(), name.to_owned()];
        words.extend(flags.words(cluster));
        words.extend(self.way.words());
        Error::new(error.kind(), format!("{error}\nto go on with it: {}", program::line(words)))
    }
}

/// `patch`, and the note which file is sent.
fn mark(input: &Input, mut patch: Value) -> Value {
    if let Some(annotations) = patch.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.insert(ANNOTATION_FILE.to_owned(), json!(input.fingerprint));
    }
    patch
}

/// What an Image of a file is called if nobody says it: the file's name without what follows the first dot after its beginning, in letters
/// that Kubernetes allows.
fn name_of(path: &Path) -> Option<String> {
    const ENDINGS: [&str; 22] = [
        "raw", "img", "iso", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "hdd", "ova", "ovf", "tar", "gz", "tgz", "xz",
        "zst", "bz2", "lz4", "zip", "disk", "ami", "qcow",
    ];
    let mut name = path.file_name()?.to_str()?.to_lowercase();
    while let Some((stem, ending)) = name.rsplit_once('.')
        && !stem.is_empty()
        && ENDINGS.contains(&ending)
    {
        name = stem.to_owned();
    }
    let allowed = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' };
    let name: String = name.chars().map(allowed).take(200).collect();
    let name = name.trim_matches(['-', '.']).replace("..", ".");
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_become_names_of_images() {
        let of = |path: &str| name_of(Path::new(path));
        assert_eq!(of("/a/Debian_12.qcow2.xz").as_deref(), Some("debian-12"));
        assert_eq!(of("ubuntu-24.04.img").as_deref(), Some("ubuntu-24.04"));
        assert_eq!(of("disk").as_deref(), Some("disk"));
        assert_eq!(of("___"), None);
        assert_eq!(of(".raw").as_deref(), Some("raw"));
    }
}

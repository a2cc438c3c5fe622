//! `vitrine convert`: an image from anywhere, as a file in any format that is written.

use std::{
    io::{IsTerminal as _, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, ValueHint};
use vitrine_engine::{
    error::{Error, Kind, Result},
    format,
    model::{Compression, Digest, DiskFormat, OutputFormat, Subformat},
    pipeline::{self, ConvertJob, Import, Imported, Progress, Target},
    store::{pipe::Pipe, plain::PlainFile},
};

use super::{
    bounds::Bounds,
    expected::Expected,
    import::{Outcome, key},
    input::{Fetching, Input},
    output::Output,
    progress::Shown,
    work::{self, interruption, workers},
};

/// One pass: what comes from a URL, from standard input or compressed is decoded while it comes in. Holes and zeros stay holes.
/// The file appears under its name when it is whole and durable; until then it has a private name beside it.
#[derive(Args, Debug)]
pub struct Convert {
    /// A file, an http or https URL, or - for standard input
    source: String,
    /// The file to write, or - for standard output (raw, vmdk streamOptimized, vhd fixed)
    #[arg(value_hint = ValueHint::FilePath)]
    target: PathBuf,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    expected: Expected,
    /// What the source's bytes must hash to, as algorithm:hex; may be given several times
    #[arg(long = "checksum", value_name = "DIGEST")]
    checksums: Vec<Digest>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Show no progress and no result
    #[arg(short, long)]
    quiet: bool,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    fetching: Fetching,
    #[command(flatten)]
    bounds: Bounds,
}

/// The form of what is written.
#[derive(Args, Clone, Copy, Debug)]
pub struct Form {
    /// Format to write: raw, qcow2, vmdk, vhd, vhdx, vdi or ploop
    #[arg(short = 'O', long = "output-format", value_name = "FORMAT", default_value = "raw")]
    disk_format: DiskFormat,
    /// Variant of the format: monolithicSparse or streamOptimized of vmdk, dynamic or fixed of vhd and vhdx, dynamic or static of vdi
    #[arg(long, value_name = "SUBFORMAT")]
    subformat: Option<Subformat>,
    /// Compression of qcow2 clusters: none, zlib or zstd
    #[arg(short = 'c', long, value_name = "COMPRESSION", default_value = "none")]
    compression: Compression,
    /// Size of qcow2 clusters in bytes: a power of two, 512 to 2097152
    #[arg(long, value_name = "BYTES", default_value_t = OutputFormat::RAW.cluster_size)]
    cluster_size: u32,
}

impl Form {
    /// The form for the engine, which knows what can be written.
    ///
    /// # Errors
    /// `InvalidInput` if it cannot.
    pub fn checked(self) -> Result<OutputFormat> {
        let Self { disk_format, subformat, compression, cluster_size } = self;
        let output = OutputFormat { disk_format, subformat, compression, cluster_size };
        format::encoder(output).map(|_| output)
    }
}

impl Convert {
    /// Converts and prints the result. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        work::run("convert", self.convert_and_print())
    }

    async fn convert_and_print(&self) -> Result<ExitCode> {
        let output = self.form.checked()?;
        let input = Input::parse(&self.source)?;
        if self.target.as_os_str() == "-" {
            return self.convert_to_stdout(&input, output).await;
        }
        let file = PlainFile::new(&self.target, self.force);
        file.check()?;
        let target = Target { store: Arc::new(file), output };
        let progress = Arc::new(Progress::default());
        let shown = Shown::start(&progress, self.quiet);
        let imported = self.convert(&input, target, &progress).await?;
        drop(shown);
        if !self.quiet {
            self.output.print(&Outcome::new(&imported)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The image is what comes out, so the result is told with the progress.
    async fn convert_to_stdout(&self, input: &Input, output: OutputFormat) -> Result<ExitCode> {
        check_stdout(output)?;
        let pipe = Pipe::stdout()?;
        let target = Target { store: Arc::new(pipe.clone()), output };
        let progress = Arc::new(Progress::default());
        let (shown, cancel) = (Shown::start(&progress, self.quiet), interruption()?);
        let done = tokio::select! {
            done = self.convert(input, target, &progress) => done,
            // Nobody may be reading any more, and then a write never ends.
            () = cancel.cancelled() => Err(Error::new(Kind::Cancelled, "interrupted; what was written is not whole")),
        };
        drop(shown);
        match done {
            Ok(imported) if self.quiet => drop(imported),
            Ok(imported) => eprint!("{}", self.output.text(&Outcome::new(&imported)?)?),
            // Whoever closed it knows.
            Err(_) if pipe.is_closed() => return Ok(ExitCode::FAILURE),
            Err(error) => return Err(error),
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn convert(&self, input: &Input, target: Target, progress: &Arc<Progress>) -> Result<Imported> {
        let cancel = interruption()?;
        // A file whose digest nobody asked for needs not be read where it has holes.
        if let (Input::File(path), true) =
            (input, self.checksums.is_empty() && self.expected.container_format.is_none())
            && pipeline::is_plain(path)?
        {
            let job = ConvertJob {
                path: path.clone(),
                disk_format: self.expected.format,
                target,
                key: key()?,
                limits: self.bounds.limits(),
                workers: workers(),
            };
            return pipeline::convert(job, progress, &cancel).await;
        }
        let job = Import {
            source: input.source(&self.fetching, !self.checksums.is_empty())?,
            disk_format: self.expected.format,
            container_format: self.expected.container_format,
            container_disk: self.expected.container_disk.clone(),
            checksums: self.checksums.clone(),
            request: None,
            key: key()?,
            attempt: 1,
            targets: vec![target],
            require_all: true,
            permit: None,
            limits: self.bounds.limits(),
            scratch: scratch_for(&self.target),
            workers: workers(),
        };
        pipeline::import(&job, progress, &cancel).await
    }
}

/// Whether `output` can be written to standard output, as it is.
fn check_stdout(output: OutputFormat) -> Result<()> {
    let refuse = |message: String| Err(Error::new(Kind::InvalidInput, message));
    if stdout().is_terminal() {
        return refuse(
            "standard output is a terminal, which an image only confuses: name a file, or a program with |".into(),
        );
    }
    // Whatever the size: that of some sources is seen later.
    if format::encoder(output)?.is_forward(Some(0)) {
        return Ok(());
    }
    let form = output
        .subformat
        .map_or_else(|| output.disk_format.to_string(), |form| format!("{} {form}", output.disk_format));
    refuse(format!(
        "{form} cannot be written to standard output, because what it begins with is known last: use raw, \
         `vmdk --subformat streamOptimized` or `vhd --subformat fixed`, or name a file"
    ))
}

/// What has to wait on disk waits where the output goes: there is room for it there, or nowhere.
fn scratch_for(path: &Path) -> PathBuf {
    if path.as_os_str() == "-" {
        return std::env::temp_dir();
    }
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

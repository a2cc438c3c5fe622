//! `vitrine inspect`: what an image is, and every reason to refuse it that its tables show.

use std::process::ExitCode;

use clap::Args;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::{Inspection, Properties, Verdict},
    pipeline::{self, InspectJob},
};

use super::{
    bounds::Bounds,
    expected::Expected,
    input::{Fetching, Input},
    output::{Output, Rows, size},
    work::{self, REFUSED, interruption},
};

/// Reads headers and tables, not the data between them: a file or URL that can be read by range is not read whole. What is
/// compressed as a whole (gzip, xz, zstd, bzip2, lz4, zip) is unpacked and inspected inside; that, standard input, and servers without
/// ranges are read to the end. Of an OVA or a tar archive, the disk in it is looked at.
#[derive(Args, Debug)]
pub struct Inspect {
    /// A file, an http or https URL, or - for standard input
    image: String,
    #[command(flatten)]
    expected: Expected,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    fetching: Fetching,
    #[command(flatten)]
    bounds: Bounds,
}

impl Inspect {
    /// Inspects and prints. The exit code is the answer.
    pub fn run(&self) -> ExitCode {
        work::run("inspect", self.inspect())
    }

    async fn inspect(&self) -> Result<ExitCode> {
        let job = InspectJob {
            source: Input::parse(&self.image)?.source(&self.fetching, false)?,
            disk_format: self.expected.format,
            container_format: self.expected.container_format,
            container_disk: self.expected.container_disk.clone(),
            limits: self.bounds.limits(),
            scratch: std::env::temp_dir(),
        };
        let inspection = pipeline::inspect(job, &interruption()?).await.map_err(without_verdict)?;
        self.output.print(&inspection)?;
        Ok(match inspection.verdict {
            Verdict::Accepted => ExitCode::SUCCESS,
            Verdict::Refused => ExitCode::from(REFUSED),
        })
    }
}

/// The exit code of a refusal says that a verdict was printed.
fn without_verdict(error: Error) -> Error {
    match error.kind() {
        Kind::Refused => Error::with_source(Kind::Internal, "it could not be told", error),
        _ => error,
    }
}

/// What the container says of the machine, one row each.
pub fn property_rows(properties: &Properties) -> impl Iterator<Item = (&'static str, String)> {
    let row = |(number, (name, value)): (usize, (&String, &String))| {
        (if number == 0 { "properties" } else { "" }, format!("{name} = {value}"))
    };
    properties.iter().enumerate().map(row)
}

impl Rows for Inspection {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let unknown = || "unknown".to_owned();
        let mut rows = vec![
            ("disk format", self.disk_format.map_or_else(unknown, |format| format.to_string())),
            ("container format", self.container_format.to_string()),
            ("virtual size", self.virtual_size.map_or_else(unknown, size)),
            ("size", self.size.map_or_else(unknown, size)),
        ];
        if self.opaque {
            rows.push(("content", "an archive of files, opaque to a guest".to_owned()));
        }
        for (number, part) in self.parts.iter().enumerate() {
            rows.push((if number == 0 { "parts" } else { "" }, part.clone()));
        }
        rows.extend(property_rows(&self.properties));
        match self.verdict {
            Verdict::Accepted => rows.push(("verdict", "accepted".to_owned())),
            Verdict::Refused => rows.push(("verdict", "refused".to_owned())),
        }
        for (number, reason) in self.reasons.iter().enumerate() {
            let name = if number == 0 { "reasons" } else { "" };
            rows.push((name, format!("{}: {} = {}", reason.rule, reason.field, reason.value)));
            rows.push(("", format!("  {}", reason.message)));
        }
        rows
    }
}

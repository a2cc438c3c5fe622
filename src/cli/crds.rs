//! `vitrine crds`: the definitions of the custom resources, or a reference of their fields, to standard output or to files.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use vitrine_engine::error::{Error, Kind, Result};

use super::output::write;
use crate::api;

/// Print the definitions of the custom resources, or a reference of their fields.
#[derive(Debug, Args)]
pub struct Crds {
    /// Write one file for each into this folder instead.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,

    /// How to write them.
    #[arg(long, value_enum, default_value_t = As::Yaml)]
    format: As,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum As {
    /// Manifests, to be applied.
    Yaml,
    /// Tables of all fields, with their types, bounds and meanings, to be read.
    Markdown,
}

impl Crds {
    /// Prints or writes them.
    pub fn run(&self) -> ExitCode {
        match print(self) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("vitrine crds: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

fn print(args: &Crds) -> Result<()> {
    for crd in api::crds() {
        let (text, extension) = match args.format {
            As::Yaml => (api::crd_yaml(&crd), "yaml"),
            As::Markdown => (Ok(api::crd_reference(&crd)), "md"),
        };
        let text = text.map_err(|e| Error::with_source(Kind::Internal, "writing a definition as text", e))?;
        match &args.output {
            None => write(&text)?,
            Some(folder) => {
                let path = folder.join(api::crd_file_name(&crd)).with_extension(extension);
                fs::write(&path, text).map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
            }
        }
    }
    Ok(())
}

//! `vitrine crds`: the definitions of the custom resources, to standard output or to files.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Args;
use vitrine_engine::error::{Error, Kind, Result};

use super::output::write;
use crate::api;

/// Print the definitions of the custom resources.
#[derive(Debug, Args)]
pub struct Crds {
    /// Write one file for each into this folder instead.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
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
        let text =
            api::crd_yaml(&crd).map_err(|e| Error::with_source(Kind::Internal, "writing a definition as text", e))?;
        match &args.output {
            None => write(&text)?,
            Some(folder) => {
                let path = folder.join(api::crd_file_name(&crd));
                fs::write(&path, text).map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
            }
        }
    }
    Ok(())
}

//! `vitrine crds`: the definitions of the custom resources, to standard output or to files.

use std::{fs, io, path::PathBuf, process::ExitCode};

use clap::Args;

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

fn print(args: &Crds) -> io::Result<()> {
    for crd in api::crds() {
        let text = api::crd_yaml(&crd).map_err(io::Error::other)?;
        match &args.output {
            None => print!("{text}"),
            Some(folder) => {
                let path = folder.join(api::crd_file_name(&crd));
                fs::write(&path, text).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            }
        }
    }
    Ok(())
}

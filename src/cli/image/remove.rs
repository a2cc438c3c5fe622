//! `vitrine image delete`.

use std::process::ExitCode;

use clap::Args;
use vitrine_engine::error::{Error, Kind, Result};

use crate::{
    cli::{
        cluster::{ClusterFlags, WaitFlags},
        output::write,
        program,
        work::interruption,
    },
    client::images,
};

/// Delete Images with all of their data. One that fails keeps none of the others from being deleted.
#[derive(Args, Debug)]
pub struct Delete {
    /// The Images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// That one is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    wait: WaitFlags,
}

impl Delete {
    /// Deletes.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let (cluster, cancel) = (flags.open().await?, interruption()?);
        let (mut code, mut deleted) = (ExitCode::SUCCESS, Vec::new());
        for name in &self.names {
            match images::delete(&cluster, name).await {
                Ok(()) => deleted.push(name),
                Err(error) if error.kind() == Kind::NotFound && self.ignore_not_found => {}
                Err(error) => {
                    eprintln!("{} image delete: {error}", program::name());
                    code = ExitCode::FAILURE;
                }
            }
        }
        for name in deleted {
            if self.wait.wait {
                let gone = cancel.run_until_cancelled(images::gone(&cluster, name, self.wait.timeout)).await;
                let interrupted = || Error::new(Kind::Cancelled, "interrupted; what was deleted goes on being removed");
                gone.ok_or_else(interrupted)??;
            }
            write(&format!("image.vitrine.dev/{name} deleted\n"))?;
        }
        Ok(code)
    }
}

//! `vitrine image create`.

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use vitrine_engine::{
    error::{Error, Kind, Result},
    pipeline::Progress,
};

use super::declare::{Declared, DryRun, FromUrl, for_git};
use crate::{
    api::Image,
    cli::{
        cluster::{ClusterFlags, Form, WaitFlags},
        progress::Shown,
        work::interruption,
    },
    client::{connect::Cluster, images, wait::Waiting},
};

/// Declare an Image. With --url the agents fetch it. Without, it waits for its bytes: `image upload` sends them, and makes the Image itself
/// if there is none yet.
#[derive(Args, Debug)]
pub struct Create {
    /// Its name
    name: String,
    #[command(flatten)]
    url: FromUrl,
    #[command(flatten)]
    declared: Declared,
    /// Only say what would be made
    #[arg(long, value_enum, default_value_t)]
    dry_run: DryRun,
    #[command(flatten)]
    wait: WaitFlags,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Create {
    /// Makes it.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        if self.wait.wait && self.url.url.is_none() {
            let message = "an Image without --url waits for its bytes: `image upload` sends them and waits";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        if self.dry_run == DryRun::Client {
            return self.show_only(&self.declared.image(&flags.namespace().await, &self.name, &self.url)?);
        }
        let cluster = flags.open().await?;
        let image = self.declared.image(&cluster.namespace, &self.name, &self.url)?;
        let made = images::create(&cluster, &image, self.dry_run == DryRun::Server).await?;
        if self.dry_run == DryRun::Server {
            self.output.tell(&made, "created (server dry run)")?;
        } else if self.wait.wait {
            let image = until_ready(&cluster, &self.name, self.wait, |_| true).await?;
            self.output.tell(&image, "created, and ready")?;
        } else {
            self.output.tell(&made, "created")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show_only(&self, image: &Image) -> Result<ExitCode> {
        match self.output {
            Form::Json | Form::Yaml => self.output.print_value(&for_git(image)?)?,
            Form::Table | Form::Wide | Form::Name => self.output.tell(image, "created (dry run)")?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Waits until an Image is Ready and `fits`, and shows how far it is.
///
/// # Errors
/// If it will not be.
pub async fn until_ready(
    cluster: &Cluster,
    name: &str,
    wait: WaitFlags,
    fits: impl Fn(&Image) -> bool,
) -> Result<Image> {
    let (progress, cancel) = (Arc::new(Progress::default()), interruption()?);
    let _shown = Shown::start(&progress, false);
    let waiting = Waiting { cluster, name, limit: wait.timeout, progress: &progress, cancel: &cancel };
    waiting.until(fits).await
}

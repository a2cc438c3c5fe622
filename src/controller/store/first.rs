//! The ImageStore to begin with: made as a file has it that whoever installed the operator wrote, if there is none of its name.
//!
//! An installer cannot make it itself: Helm learns of the definitions that it has just installed, Flux' helm-controller does not, and what Argo CD
//! makes it would put back whenever somebody changes it. See `docs/decisions/0032-the-operator-makes-the-default-store.md`.

use std::{path::Path, sync::Arc, time::Duration};

use kube::Api;
use tokio::time::sleep;

use crate::{
    api::{ImageStore, condition::events},
    controller::{agents, context::Context},
    kube::{Error, Result},
};

/// The wait after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Makes it once in the time of a leader; for ever does nothing if the operator was told of none.
pub async fn make(context: Arc<Context>) {
    if let Some(file) = &context.settings.default_store {
        while let Err(error) = try_to_make(&context, file).await {
            tracing::warn!(%error, "the default ImageStore could not be made; trying again");
            if let Some(order) = &context.settings.agents {
                agents::tell(&context, &order.owner, events::DEFAULT_STORE_NOT_MADE, &error).await;
            }
            sleep(AGAIN).await;
        }
    }
    std::future::pending::<()>().await;
}

async fn try_to_make(context: &Context, file: &Path) -> Result<()> {
    let invalid = |why: &dyn std::fmt::Display| {
        Error::Setup(format!("{} cannot be used as the default ImageStore: {why}", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(|error| invalid(&error))?;
    let store: ImageStore = serde_yaml::from_str(&text).map_err(|error| invalid(&error))?;
    context.store_writer.create(&Api::all(context.client.clone()), &store).await.map(drop)
}

//! What the operator counts: how its controllers fare, and how many Images and stores there are in which state. `docs/metrics.md` says
//! what each means. Only the leader tells of Images and stores: the others know nothing of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::ResourceExt as _;
use metrics::{counter, gauge, histogram};
use tokio::time::Instant;

use super::context::Context;
use crate::{
    api::{Image, ImagePhase, ImageStore, condition::types},
    kube::Result,
};

/// How often Images and stores are counted.
const INTERVAL: Duration = Duration::from_secs(15);

/// This operator leads, or does not.
pub fn leads(leads: bool) {
    gauge!("vitrine_operator_leading").set(f64::from(u8::from(leads)));
}

/// Does one reconciliation of an object of this kind, and counts it.
///
/// # Errors
/// What it says.
pub async fn reconciling<T>(kind: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let began = Instant::now();
    let result = work.await;
    let label = match &result {
        Ok(_) => "succeeded",
        Err(error) if error.is_conflict() => "conflict",
        Err(_) => "failed",
    };
    counter!("vitrine_reconciliations_total", "kind" => kind, "result" => label).increment(1);
    histogram!("vitrine_reconcile_duration_seconds", "kind" => kind).record(began.elapsed());
    result
}

/// Counts Images and stores for ever.
pub async fn census(context: Arc<Context>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        leads(true);
        let images = context.images.iter().flat_map(kube::runtime::reflector::Store::state);
        for (phase, count) in phases(images.map(|image| phase(&image))) {
            gauge!("vitrine_images", "phase" => phase).set(count);
        }
        context.stores.state().iter().for_each(|store| tell(store));
    }
}

/// How many there are of each phase, those of which there are none included.
fn phases(found: impl Iterator<Item = ImagePhase>) -> BTreeMap<&'static str, f64> {
    let all = [
        ImagePhase::Queued,
        ImagePhase::Importing,
        ImagePhase::Active,
        ImagePhase::Deactivated,
        ImagePhase::Failed,
        ImagePhase::Deleting,
    ];
    let mut counts: BTreeMap<_, _> = all.into_iter().map(|phase| (name(phase), 0.0)).collect();
    for phase in found {
        *counts.entry(name(phase)).or_default() += 1.0;
    }
    counts
}

/// One that nobody has looked at yet waits.
fn phase(image: &Image) -> ImagePhase {
    image.status.as_ref().and_then(|status| status.phase).unwrap_or(ImagePhase::Queued)
}

const fn name(phase: ImagePhase) -> &'static str {
    match phase {
        ImagePhase::Queued => "Queued",
        ImagePhase::Importing => "Importing",
        ImagePhase::Active => "Active",
        ImagePhase::Deactivated => "Deactivated",
        ImagePhase::Failed => "Failed",
        ImagePhase::Deleting => "Deleting",
    }
}

fn tell(store: &ImageStore) {
    let Some(status) = &store.status else { return };
    let label = || store.name_any();
    let holds = |type_: &str| {
        let holds = status.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True");
        f64::from(u8::from(holds))
    };
    gauge!("vitrine_store_ready", "store" => label()).set(holds(types::READY));
    // One that is not to be written to is no trouble.
    if !store.spec.read_only {
        gauge!("vitrine_store_writable", "store" => label()).set(holds(types::WRITABLE));
    }
    gauge!("vitrine_store_images", "store" => label()).set(number(status.images));
    let orphans = status.orphans.as_ref().map_or(0, |orphans| orphans.count);
    gauge!("vitrine_store_orphans", "store" => label()).set(number(orphans));
    let unreachable = status.nodes.as_ref().map_or(0, |nodes| nodes.unreachable);
    gauge!("vitrine_store_unreachable_nodes", "store" => label()).set(number(unreachable));
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
const fn number(count: i64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_without_images_are_told_as_well() {
        let counts = phases([ImagePhase::Active, ImagePhase::Failed, ImagePhase::Active].into_iter());
        assert_eq!(counts.into_values().sum::<f64>().to_bits(), 3.0_f64.to_bits());
        let none = phases(std::iter::empty());
        assert_eq!(none.len(), 6);
        assert!(none.contains_key("Failed"));
    }
}

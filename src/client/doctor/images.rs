//! Images that stand still: refused, failed, or waiting for longer than anybody would.

use jiff::Timestamp;
use kube::{ResourceExt as _, api::ListParams};

use super::{Finding, listed};
use crate::{
    api::{Image, ImagePhase, LocationPhase},
    client::{
        connect::Cluster,
        text::age,
        view::image::{message, phase},
        wait::{Standing, standing},
    },
};

/// After so many seconds somebody would look why an Image is not there yet.
const LONG: i64 = 1800;
/// How many are told of; the rest is counted.
const TOLD: usize = 20;

/// Looks at those of all namespaces, or of the one that the person may see.
pub async fn examine(cluster: &Cluster) -> Vec<Finding> {
    let everywhere = listed(cluster.all_images(), &ListParams::default(), "images").await;
    let images = match everywhere {
        Ok(images) => images,
        Err(_) => match listed(cluster.images(), &ListParams::default(), "images").await {
            Ok(images) => images,
            Err(unseen) => return vec![unseen],
        },
    };
    judge(&images, Timestamp::now())
}

fn judge(images: &[Image], now: Timestamp) -> Vec<Finding> {
    let mut findings: Vec<_> = images.iter().filter_map(|image| judge_one(image, now)).collect();
    let stuck = findings.len();
    findings.truncate(TOLD);
    if stuck > TOLD {
        let remedy = "kubectl vitrine image list --all-namespaces --output wide";
        findings.push(Finding::warning("images", format!("{} more stand still", stuck - TOLD), remedy));
    }
    findings.push(Finding::ok("images", format!("{} of {} are in order", images.len() - stuck, images.len())));
    findings
}

fn judge_one(image: &Image, now: Timestamp) -> Option<Finding> {
    let (name, namespace) = (image.name_any(), image.namespace().unwrap_or_default());
    let subject = format!("image {namespace}/{name}");
    let why = message(image).unwrap_or("nobody has looked at it");
    let show = format!("kubectl vitrine image show {name} --namespace {namespace}");
    if let Standing::Stalled(why, rule) = standing(image) {
        let (what, remedy) = match rule {
            Some(_) => ("was refused", format!("{show}; declare or upload another one")),
            None => (
                "has failed for good",
                format!("{show}; when its cause is gone: kubectl vitrine image import {name} --namespace {namespace}"),
            ),
        };
        return Some(Finding::warning(subject, format!("{what}: {why}"), remedy));
    }
    let damaged = image
        .status
        .iter()
        .flat_map(|status| &status.locations)
        .find(|location| location.phase == LocationPhase::Corrupt);
    if let Some(location) = damaged {
        return Some(Finding::warning(
            subject,
            format!("its copy in {} has rotted", location.store),
            "see docs/runbooks/VitrineCopyRotten.md",
        ));
    }
    let since = image.creation_timestamp()?.0;
    let begun = image.metadata.deletion_timestamp.as_ref().map_or(since, |at| at.0);
    let waits = !matches!(phase(image), Some(ImagePhase::Active | ImagePhase::Deactivated));
    let moves = image
        .status
        .as_ref()
        .is_some_and(|status| status.progress.as_ref().is_some_and(|progress| progress.bytes_done > 0));
    let long = now.as_second().saturating_sub(begun.as_second()) > LONG;
    (waits && !moves && long)
        .then(|| Finding::warning(subject, format!("is not there after {}: {why}", age(begun, now)), show))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::super::{Level, worst};
    use super::*;
    use crate::{
        api::{ImageSpec, ImageStatus},
        kube::condition::Health,
    };

    #[test]
    fn what_stands_still_is_told_and_what_moves_is_not() {
        let now = Timestamp::now();
        let image = |health: &Health, phase, age: i64| {
            let mut image = Image::new("a", ImageSpec::default());
            image.metadata.generation = Some(1);
            image.metadata.creation_timestamp = Some(Time(Timestamp::from_second(now.as_second() - age).unwrap()));
            image.status = Some(ImageStatus {
                observed_generation: Some(1),
                phase: Some(phase),
                conditions: health.conditions(1, &[], now),
                ..ImageStatus::default()
            });
            image
        };
        let level = |image: Image| worst(&judge(&[image], now));
        let (good, waits) = (Health::Current(String::new()), Health::Progressing("waits".to_owned()));
        assert_eq!(level(image(&good, ImagePhase::Active, 90_000)), Level::Ok);
        assert_eq!(level(image(&waits, ImagePhase::Queued, 60)), Level::Ok);
        assert_eq!(level(image(&waits, ImagePhase::Queued, 90_000)), Level::Warning);
        assert_eq!(level(image(&Health::Stalled("X", "no".to_owned()), ImagePhase::Failed, 60)), Level::Warning);
    }
}

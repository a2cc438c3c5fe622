//! The stores: one that keeps what names none, and each of them read and written.

use kube::{ResourceExt, api::ListParams};

use super::{Finding, listed};
use crate::{
    api::{
        ImageStore,
        condition::{reasons, types},
    },
    client::connect::Cluster,
    kube::condition::find,
};

/// Looks at them.
pub async fn examine(cluster: &Cluster) -> Vec<Finding> {
    match listed(cluster.stores(), &ListParams::default(), "stores").await {
        Ok(stores) => judge(&stores),
        Err(unseen) => vec![unseen],
    }
}

fn judge(stores: &[ImageStore]) -> Vec<Finding> {
    if stores.is_empty() {
        let remedy = "make an ImageStore: see docs/stores.md, and config/samples/imagestore.yaml";
        return vec![Finding::problem("stores", "there is none: no Image can be kept", remedy)];
    }
    let mut findings = vec![judge_default(stores)];
    findings.extend(stores.iter().map(judge_one));
    findings
}

fn judge_default(stores: &[ImageStore]) -> Finding {
    let subject = "default store";
    let names = |which: fn(&ImageStore) -> bool| {
        let mut names: Vec<_> = stores.iter().filter(|store| which(store)).map(ResourceExt::name_any).collect();
        names.sort_unstable();
        names
    };
    let wanted = names(|store| store.spec.default);
    let is = names(|store| store.status.as_ref().is_some_and(|status| status.default));
    match (wanted.as_slice(), is.as_slice()) {
        ([], []) => Finding::warning(
            subject,
            "there is none: Images that name no store are not imported",
            "kubectl patch imagestore NAME --type merge --patch '{\"spec\":{\"default\":true}}'",
        ),
        ([_, _, ..], is) => Finding::warning(
            subject,
            format!("{} all say that they are it; the oldest is ({})", wanted.join(", "), is.join(", ")),
            "leave spec.default to one of them",
        ),
        (_, []) => Finding::warning(
            subject,
            format!("the operator has not taken note of {}", wanted.join(", ")),
            "see what is said of the leader",
        ),
        (_, is) => Finding::ok(subject, is.join(", ")),
    }
}

fn judge_one(store: &ImageStore) -> Finding {
    let name = store.name_any();
    let subject = format!("store {name}");
    let look = format!("kubectl vitrine store probe {name}; kubectl vitrine store show {name}");
    let status = store.status.clone().unwrap_or_default();
    let of = |type_| find(&status.conditions, type_);
    let (Some(ready), Some(writable)) = (of(types::READY), of(types::WRITABLE)) else {
        return Finding::problem(subject, "no operator has looked at it", "see what is said of the leader");
    };
    if ready.status != "True" {
        return Finding::problem(subject, ready.message.clone(), look);
    }
    let nodes = status.nodes.clone().unwrap_or_default();
    if nodes.unreachable > 0 {
        let problems = nodes.problems.join("; ");
        return Finding::warning(
            subject,
            format!("{} nodes that ought to reach it do not: {problems}", nodes.unreachable),
            look,
        );
    }
    if writable.status != "True" {
        let meant = writable.reason == reasons::READ_ONLY && store.spec.read_only;
        return if meant {
            Finding::ok(subject, "is ready, and read-only as its owner says")
        } else {
            Finding::warning(subject, format!("takes no new images: {}", writable.message), look)
        };
    }
    if let Some(orphans) = status.orphans.as_ref().filter(|orphans| orphans.count > 0) {
        let remedy =
            "it is removed when a day has passed, unless an Image claims it; see docs/runbooks/VitrineStoreOrphans.md";
        return Finding::warning(subject, format!("holds {} objects that no Image knows", orphans.count), remedy);
    }
    let room = status.capacity.map(|room| format!(", {} left", room.display)).unwrap_or_default();
    Finding::ok(subject, format!("is ready on {} nodes, and takes images{room}", nodes.reachable))
}

#[cfg(test)]
mod tests {
    use super::super::{Level, worst};
    use super::*;
    use crate::{
        api::{ImageStoreSpec, ImageStoreStatus, NodeReach},
        kube::condition::{Health, condition},
    };

    fn store(name: &str, default: bool, health: &Health, writable: &str) -> ImageStore {
        let mut store = ImageStore::new(name, ImageStoreSpec { default, ..ImageStoreSpec::default() });
        let now = jiff::Timestamp::now();
        let mut conditions = health.conditions(1, &[], now);
        conditions.push(condition(types::WRITABLE, writable, "X", "why not", 1, &[], now));
        let nodes = Some(NodeReach { reachable: 1, ..NodeReach::default() });
        store.status = Some(ImageStoreStatus { conditions, default, nodes, ..ImageStoreStatus::default() });
        store
    }

    #[test]
    fn stores_are_judged_by_their_conditions() {
        let (good, bad) = (Health::Current(String::new()), Health::Hindered("Unreachable", "is away".to_owned()));
        let level = |stores: &[ImageStore]| worst(&judge(stores));
        assert_eq!(level(&[]), Level::Problem);
        assert_eq!(level(&[store("a", true, &good, "True")]), Level::Ok);
        assert_eq!(level(&[store("a", false, &good, "True")]), Level::Warning, "no default");
        assert_eq!(level(&[store("a", true, &good, "True"), store("b", true, &good, "True")]), Level::Warning, "two");
        assert_eq!(level(&[store("a", true, &good, "False")]), Level::Warning);
        assert_eq!(level(&[store("a", true, &bad, "False")]), Level::Problem);
        let untouched = ImageStore::new("a", ImageStoreSpec::default());
        assert_eq!(judge_one(&untouched).level, Level::Problem);
    }
}

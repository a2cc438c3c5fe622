//! ImageStores.

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{Shown, age_of, condition, condition_line};
use crate::{
    api::{ImageStore, NodeCache, StoreReport, condition::types},
    client::{
        table::{Sheet, Table},
        text::{age, bytes, short_size},
    },
};

impl Shown for ImageStore {
    fn headings(wide: bool) -> Vec<&'static str> {
        let usual = ["NAME", "TYPE", "DEFAULT", "READY", "WRITABLE", "IMAGES", "AVAILABLE", "AGE"];
        let more = ["PLACE", "NODES", "REASON", "MESSAGE"];
        usual.into_iter().chain(more.into_iter().filter(|_| wide)).collect()
    }

    fn cells(&self, wide: bool, now: Timestamp) -> Vec<String> {
        let status = self.status.clone().unwrap_or_default();
        let of = |type_| condition(&status.conditions, type_);
        let mut cells = vec![
            self.name_any(),
            self.spec.backend.kind().unwrap_or("unknown").to_owned(),
            status.default.to_string(),
            of(types::READY).map(|ready| ready.status.clone()).unwrap_or_default(),
            of(types::WRITABLE).map(|writable| writable.status.clone()).unwrap_or_default(),
            status.images.to_string(),
            status.capacity.as_ref().map(|room| room.display.clone()).unwrap_or_default(),
            age_of(self, now),
        ];
        if wide {
            let nodes = status.nodes.clone().unwrap_or_default();
            cells.push(self.spec.backend.place().unwrap_or_default().to_owned());
            cells.push(format!("{}/{}", nodes.reachable, nodes.reachable.saturating_add(nodes.unreachable)));
            cells.push(of(types::READY).map(|ready| ready.reason.clone()).unwrap_or_default());
            cells.push(of(types::READY).map(|ready| ready.message.clone()).unwrap_or_default());
        }
        cells
    }
}

/// Everything that a person asks.
pub fn sheet(store: &ImageStore, reports: &[(String, StoreReport)], now: Timestamp) -> String {
    let mut sheet = Sheet::default();
    let status = store.status.clone().unwrap_or_default();
    let spec = &store.spec;
    sheet.add("name", store.name_any());
    sheet.add("age", age_of(store, now));
    sheet.add("type", spec.backend.kind().unwrap_or("of a kind that this program does not know"));
    sheet.add("place", spec.backend.place().unwrap_or_default());
    sheet.add("default", if status.default { "yes, for Images that name no store" } else { "no" });
    sheet.add("read only", if spec.read_only { "yes" } else { "" });
    sheet.add("weight", spec.weight.to_string());
    let selector = spec.node_selector.iter().map(|(key, value)| format!("{key}={value}"));
    sheet.add("nodes with", selector.collect::<Vec<_>>().join(","));
    sheet.add("images", status.images.to_string());
    if let Some(room) = &status.capacity {
        sheet.add("available", room.display.clone());
    }
    sheet.add("last probe", status.last_probe.as_ref().map(|at| format!("{} ago", age(at.0, now))).unwrap_or_default());
    if let Some(orphans) = &status.orphans {
        sheet.add("orphans", format!("{}: {}", orphans.count, orphans.names.join(", ")));
    }
    if let Some(nodes) = &status.nodes {
        sheet.add("reached by", format!("{} nodes, and not by {}", nodes.reachable, nodes.unreachable));
        sheet.add_all("problems", nodes.problems.iter().cloned());
    }
    sheet.add_all("conditions", status.conditions.iter().map(condition_line));
    if reports.is_empty() { sheet.text() } else { format!("{}\n{}", sheet.text(), reported(reports, now)) }
}

/// What each node says of a store.
pub fn reported(reports: &[(String, StoreReport)], now: Timestamp) -> String {
    let mut table = Table::new(["NODE", "READY", "WRITABLE", "AVAILABLE", "PROBED", "MESSAGE"]);
    for (node, report) in reports {
        let room = report.available.zip(report.capacity);
        table.row([
            node.clone(),
            report.ready.to_string(),
            (report.ready && !report.read_only && report.available != Some(0)).to_string(),
            room.map(|(left, all)| format!("{} of {}", short_size(bytes(left)), short_size(bytes(all))))
                .unwrap_or_default(),
            format!("{} ago", age(report.probed_at.0, now)),
            report.message.clone(),
        ]);
    }
    table.text()
}

/// What nodes say of the store `name`, in the order of their names.
pub fn reports_of(name: &str, caches: &[NodeCache]) -> Vec<(String, StoreReport)> {
    let of_node = |cache: &NodeCache| {
        let report = cache.status.as_ref()?.stores.iter().find(|report| report.name == name)?;
        Some((cache.name_any(), report.clone()))
    };
    let mut reports: Vec<_> = caches.iter().filter_map(of_node).collect();
    reports.sort_by(|a, b| a.0.cmp(&b.0));
    reports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{FilesystemBackend, ImageStoreSpec};

    #[test]
    fn a_row_has_a_cell_for_each_heading() {
        let folder = FilesystemBackend { path: "/images".to_owned(), shared: false };
        let store = ImageStore::new("s", ImageStoreSpec { backend: folder.into(), ..ImageStoreSpec::default() });
        for wide in [false, true] {
            assert_eq!(ImageStore::headings(wide).len(), store.cells(wide, Timestamp::now()).len());
        }
        let text = sheet(&store, &[], Timestamp::now());
        assert!(text.contains("filesystem") && text.contains("/images"), "{text}");
    }
}

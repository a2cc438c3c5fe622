//! ImageTasks: what nodes are at.

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{Shown, age_of, word};
use crate::{
    api::ImageTask,
    client::text::{bytes, short_size},
};

impl Shown for ImageTask {
    fn headings(wide: bool) -> Vec<&'static str> {
        let usual = ["NAME", "ACTION", "IMAGE", "NODE", "ATTEMPT", "PHASE", "PROGRESS", "AGE"];
        let more = ["STORES", "MESSAGE"];
        usual.into_iter().chain(more.into_iter().filter(|_| wide)).collect()
    }

    fn cells(&self, wide: bool, now: Timestamp) -> Vec<String> {
        let (spec, status) = (&self.spec, self.status.clone().unwrap_or_default());
        let progress = status.progress.as_ref().map(|progress| {
            let done = bytes(progress.bytes_done);
            match progress.bytes_total.map(bytes).filter(|total| *total > 0) {
                Some(total) => format!("{}% of {}", u128::from(done) * 100 / u128::from(total), short_size(total)),
                None => short_size(done),
            }
        });
        let mut cells = vec![
            self.name_any(),
            word(spec.action),
            format!("{}/{}", spec.image.namespace, spec.image.name),
            spec.node_name.clone(),
            spec.attempt.to_string(),
            word(status.phase.unwrap_or_default()),
            progress.unwrap_or_default(),
            age_of(self, now),
        ];
        if wide {
            cells.push(spec.stores().collect::<Vec<_>>().join(","));
            cells.push(status.failure.map(|failure| failure.message).unwrap_or_default());
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_heading() {
        let task: ImageTask = serde_json::from_value(serde_json::json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageTask", "metadata": { "name": "t" },
            "spec": {
                "action": "Delete", "image": { "namespace": "a", "name": "b", "uid": "c", "generation": 1 },
                "revision": 1, "nodeName": "n1", "attempt": 1, "delete": { "stores": [{ "name": "s" }], "fence": 1 },
            },
            "status": { "phase": "Running", "progress": { "stage": "Transferring", "bytesDone": 50, "bytesTotal": 100 } },
        }))
        .unwrap();
        let now = Timestamp::now();
        for wide in [false, true] {
            assert_eq!(ImageTask::headings(wide).len(), task.cells(wide, now).len());
        }
        assert_eq!(task.cells(true, now)[1..9], ["Delete", "a/b", "n1", "1", "Running", "50% of 100 B", "", "s"]);
    }
}

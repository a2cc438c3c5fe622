//! Images.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;

use super::{Shown, age_of, condition, condition_line, event, word};
use crate::{
    api::{Image, ImagePhase, Location, condition::types},
    client::{
        table::Sheet,
        text::{bytes, lasting, short_size, size},
    },
};

/// Events shown with an Image, the last ones.
const EVENTS: usize = 10;

impl Shown for Image {
    fn headings(wide: bool) -> Vec<&'static str> {
        let usual = ["NAME", "PHASE", "READY", "FORMAT", "VIRTUAL", "SIZE", "STORES", "AGE"];
        let more = ["PROGRESS", "REASON", "MESSAGE"];
        usual.into_iter().chain(more.into_iter().filter(|_| wide)).collect()
    }

    fn cells(&self, wide: bool, now: Timestamp) -> Vec<String> {
        let status = self.status.clone().unwrap_or_default();
        let (display, content) = (status.display.clone().unwrap_or_default(), status.content.as_ref());
        let ready = condition(&status.conditions, types::READY);
        let mut cells = vec![
            self.name_any(),
            phase(self).map(word).unwrap_or_default(),
            ready.map(|ready| ready.status.clone()).unwrap_or_default(),
            content.map(|content| content.disk_format.to_string()).unwrap_or_default(),
            content.map(|content| short_size(bytes(content.virtual_size))).unwrap_or_default(),
            content.map(|content| short_size(bytes(content.size))).unwrap_or_default(),
            display.stores.unwrap_or_default(),
            age_of(self, now),
        ];
        if wide {
            cells.push(display.progress.unwrap_or_default());
            cells.push(ready.map(|ready| ready.reason.clone()).unwrap_or_default());
            cells.push(ready.map(|ready| ready.message.clone()).unwrap_or_default());
        }
        cells
    }
}

/// One word on it.
pub fn phase(image: &Image) -> Option<ImagePhase> {
    image.status.as_ref().and_then(|status| status.phase)
}

/// What is said of it.
pub fn message(image: &Image) -> Option<&str> {
    let ready = condition(&image.status.as_ref()?.conditions, types::READY)?;
    (!ready.message.is_empty()).then_some(ready.message.as_str())
}

/// Everything that a person asks.
pub fn sheet(image: &Image, happened: &[Event], now: Timestamp) -> String {
    let mut sheet = Sheet::default();
    let status = image.status.clone().unwrap_or_default();
    sheet.add("name", image.name_any());
    sheet.add("namespace", image.namespace().unwrap_or_default());
    sheet.add("uid", image.uid().unwrap_or_default());
    sheet.add("age", age_of(image, now));
    sheet.add("phase", phase(image).map_or_else(|| "nobody has looked at it yet".to_owned(), word));
    sheet.add("why", message(image).unwrap_or_default());
    declared(image, &mut sheet);
    found(image, &mut sheet);
    sheet.add_all("locations", status.locations.iter().map(location));
    under_way(image, now, &mut sheet);
    sheet.add_all("conditions", status.conditions.iter().map(condition_line));
    let last = happened.len().saturating_sub(EVENTS);
    sheet.add_all("events", happened.iter().skip(last).map(|one| event::line(one, now)));
    sheet.text()
}

/// What spec says.
fn declared(image: &Image, sheet: &mut Sheet) {
    let spec = &image.spec;
    if let Some(http) = &spec.source.http {
        sheet.add("source", http.url.clone());
        sheet.add("checksum", http.checksum.clone().or(http.checksum_url.clone()).unwrap_or_default());
    }
    if let Some(upload) = &spec.source.upload {
        sheet.add("source", "upload");
        sheet.add("checksum", upload.checksum.clone().unwrap_or_default());
    }
    let stores = if spec.all_stores { "all".to_owned() } else { spec.stores.join(",") };
    sheet.add("stores wanted", if stores.is_empty() { "the default one".to_owned() } else { stores });
    for (name, set) in [("protected", spec.protected), ("deactivated", spec.deactivated)] {
        sheet.add(name, if set { "yes" } else { "" });
    }
    sheet.add_all("labels", image.labels().iter().map(|(key, value)| format!("{key}={value}")));
    sheet.add_all("properties", spec.properties.iter().map(|(key, value)| format!("{key}={value}")));
    sheet.add("tags", spec.tags.join(","));
}

/// What was found in it.
fn found(image: &Image, sheet: &mut Sheet) {
    let status = image.status.clone().unwrap_or_default();
    sheet.add("revision", status.revision.map(|number| number.to_string()).unwrap_or_default());
    let Some(content) = &status.content else { return };
    sheet.add("disk format", content.disk_format.to_string());
    sheet.add("container format", content.container_format.to_string());
    sheet.add("virtual size", size(bytes(content.virtual_size)));
    sheet.add("size", size(bytes(content.size)));
    sheet.add_all("digests", content.digests.iter().cloned());
    sheet.add("content digest", content.content_digest.clone());
    sheet.add_all("found in it", content.properties.iter().map(|(key, value)| format!("{key}={value}")));
}

fn location(location: &Location) -> String {
    let node = location.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let url = location.url.as_ref().map(|url| format!("  {url}")).unwrap_or_default();
    let format = location.format.map(|format| format!("  {}", format.disk_format)).unwrap_or_default();
    let held = location.allocated_size.map(|held| format!("  holds {}", short_size(bytes(held)))).unwrap_or_default();
    let why = location.message.as_ref().map(|why| format!("  {why}")).unwrap_or_default();
    format!("{}{node}  {}{format}{held}{url}{why}", location.store, word(location.phase))
}

/// What goes on with it.
fn under_way(image: &Image, now: Timestamp, sheet: &mut Sheet) {
    let status = image.status.clone().unwrap_or_default();
    if let Some(progress) = &status.progress {
        let done = short_size(bytes(progress.bytes_done));
        let of = progress.bytes_total.map(|total| format!(" of {}", short_size(bytes(total)))).unwrap_or_default();
        let rate = progress.rate.map(|rate| format!(", {}/s", short_size(bytes(rate)))).unwrap_or_default();
        let left = progress.eta_seconds.map(|left| format!(", {} left", lasting(bytes(left)))).unwrap_or_default();
        sheet.add("progress", format!("{}: {done}{of}{rate}{left}", progress.stage.to_lowercase()));
    }
    sheet.add("upload to", status.upload.map(|upload| upload.url).unwrap_or_default());
    let Some(attempt) = &status.attempt else { return };
    let node = attempt.node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
    sheet.add(
        "attempt",
        format!("{} at revision {}{node}, {} failed", attempt.number, attempt.revision, attempt.failures),
    );
    if let Some(failure) = &attempt.last_failure {
        let rule = failure.rule.as_ref().map(|rule| format!(" by rule {rule}")).unwrap_or_default();
        let ago = super::age(failure.at.0, now);
        sheet.add(
            "last failure",
            format!("{}{rule} on {}, {ago} ago: {}", failure.reason, failure.node, failure.message),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Content, ImageSpec, ImageStatus};

    fn image() -> Image {
        let mut image = Image::new("debian", ImageSpec::default());
        image.spec.source.http = Some(crate::api::HttpSource { url: "https://a/b".to_owned(), ..Default::default() });
        let content: Content = serde_json::from_value(serde_json::json!({
            "diskFormat": "qcow2", "containerFormat": "bare", "virtualSize": 2 << 20, "size": 1 << 20,
            "digests": ["sha256:0a"], "contentDigest": "blake3:0b",
        }))
        .unwrap();
        image.status =
            Some(ImageStatus { phase: Some(ImagePhase::Active), content: Some(content), ..ImageStatus::default() });
        image
    }

    #[test]
    fn a_row_has_a_cell_for_each_heading() {
        let now = Timestamp::now();
        for wide in [false, true] {
            assert_eq!(Image::headings(wide).len(), image().cells(wide, now).len());
            assert_eq!(Image::headings(wide).len(), Image::default().cells(wide, now).len());
        }
        let cells = image().cells(false, now);
        assert_eq!(cells[..6], ["debian", "Active", "", "qcow2", "2 MiB", "1 MiB"]);
        assert_eq!(image().full_name(), "image.vitrine.dev/debian");
    }

    #[test]
    fn a_sheet_says_what_is_known() {
        let text = sheet(&image(), &[], Timestamp::now());
        for part in ["phase             Active", "https://a/b", "blake3:0b", "the default one", "2 MiB (2097152)"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }
}

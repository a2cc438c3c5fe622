//! Says how the Image stands: phase, conditions, what serves.

use super::{Draft, desire::CORRUPT, place::from_its_source};
use crate::{
    api::{
        Display, ImagePhase, Location, LocationPhase, Progress, Revision, RevisionPhase, UploadPoint,
        condition::{reasons, types},
        identity,
    },
    kube::{
        condition::{Health, find},
        event::Happening,
    },
};

/// The longest message of a location, in characters, by its schema.
const MAX_MESSAGE: usize = 4096;

impl Draft<'_> {
    /// Completes status. `target` is the revision that spec asks for, if one could be begun.
    pub(super) fn finish(&mut self, target: Option<i64>, deleting: bool) {
        let health = if deleting { self.deletion_health() } else { self.desire_health(target) };
        self.mirror_current(target);
        self.status.upload = self.upload_point().filter(|_| !deleting);
        self.status.phase = Some(self.phase(&health));
        let generation = self.seen.image.metadata.generation.unwrap_or_default();
        let before = std::mem::take(&mut self.status.conditions);
        if let Health::Stalled(reason, message) = &health {
            let said = find(&before, types::STALLED).is_some_and(|stalled| stalled.message == *message);
            if !said {
                self.tell(Happening::warning(reason, "Decide", message.clone()));
            }
        }
        self.status.conditions = health.conditions(generation, &before, self.seen.now);
        self.status.observed_generation = Some(generation);
    }

    fn deletion_health(&self) -> Health {
        if let Some(waits) = &self.waits {
            return Health::Deleting(reasons::WAITING, waits.clone());
        }
        let places = self.status.cleanup.len();
        let tasks = self.remaining_tasks();
        Health::Deleting(reasons::DELETING, format!("removing data: {places} places and {tasks} tasks left"))
    }

    fn desire_health(&mut self, target: Option<i64>) -> Health {
        let serving = match self.serving() {
            Some(revision) if Some(revision.number) != target => {
                format!("; revision {} goes on serving", revision.number)
            }
            _ => String::new(),
        };
        let busy = self.status.attempt.as_ref().is_some_and(|attempt| attempt.node.is_some());
        // What is under way goes on, though it could not be begun any more.
        if let Err(why) = self.seen.wanted
            && !busy
        {
            return Health::Stalled(reasons::INVALID_CONFIGURATION, format!("{why}{serving}"));
        }
        if let Some(health) = self.contented(target) {
            return health;
        }
        let serving = format!("{serving}{}", self.loss(target));
        if let Some(health) = self.health.take() {
            return with_suffix(health, &serving);
        }
        let Some(attempt) = &self.status.attempt else { return self.current_health(target) };
        let message = match &attempt.node {
            Some(node) if !attempt.from.is_empty() => {
                let (from, into) = (attempt.from.join(", "), attempt.stores.join(", "));
                format!("revision {} is copied from {from} into {into} by node {node}{serving}", attempt.revision)
            }
            Some(node) if self.waits_for_upload() => {
                let url = self.upload_point().map(|point| point.url).unwrap_or_default();
                format!("revision {} waits for its bytes: send them to {url} (node {node}){serving}", attempt.revision)
            }
            Some(node) => {
                let why = attempt.why.as_deref().map(from_its_source).unwrap_or_default();
                format!("revision {} is imported by node {node}{why}{serving}", attempt.revision)
            }
            None => format!("revision {} is about to be imported{serving}", attempt.revision),
        };
        Health::Progressing(message)
    }

    /// What is to be told of a revision that was there, and is nowhere any more.
    fn loss(&self, target: Option<i64>) -> String {
        let hash = self.status.revisions.iter().find(|r| Some(r.number) == target).map(|r| &r.spec_hash);
        let lost = self.status.revisions.iter().rfind(|revision| {
            Some(&revision.spec_hash) == hash
                && revision.phase == RevisionPhase::Active
                && revision.copies().next().is_none()
        });
        lost.map(|revision| {
            format!(
                "; every copy of revision {} is lost or corrupt, so it must come from its source again",
                revision.number
            )
        })
        .unwrap_or_default()
    }

    /// What spec asks for is there if some of the stores are enough; what the others wait for is told.
    fn contented(&self, target: Option<i64>) -> Option<Health> {
        let Ok(wanted) = self.seen.wanted else { return None };
        let serving = self.serving().filter(|revision| Some(revision.number) == target);
        // A copy that only waits in a store which is to be left is none of those that were asked for.
        let there = serving.is_some_and(|revision| {
            revision.copies().any(|copy| wanted.stores.iter().any(|store| store.name == copy.store))
        });
        if wanted.require_all || !there || self.lacking.is_empty() {
            return None;
        }
        let lacking: Vec<_> = self.lacking.iter().map(|(store, why)| format!("not in {store}: {why}")).collect();
        let Health::Current(message) = self.current_health(target) else { return None };
        Some(Health::Current(format!("{message}; {}", lacking.join("; "))))
    }

    fn current_health(&self, target: Option<i64>) -> Health {
        let Some(revision) = self.serving().filter(|revision| Some(revision.number) == target) else {
            return Health::Progressing("waits to be looked at again".into());
        };
        let (stores, digest) =
            (store_names(revision), revision.content.as_ref().map_or("", |content| &content.content_digest));
        let waits = self.waits.as_ref().map(|waits| format!("; {waits}")).unwrap_or_default();
        Health::Current(format!("revision {} is kept in {stores} ({digest}){waits}", revision.number))
    }

    /// The revision that can be used now.
    fn serving(&self) -> Option<&Revision> {
        let number = self.status.revision?;
        self.status.revisions.iter().find(|revision| revision.number == number && revision.copies().next().is_some())
    }

    fn phase(&self, health: &Health) -> ImagePhase {
        let busy = self
            .attempt_task()
            .is_some_and(|task| task.status.as_ref().is_some_and(|status| status.started_at.is_some()))
            && !self.waits_for_upload();
        match health {
            Health::Deleting(..) => ImagePhase::Deleting,
            _ if self.serving().is_some() && self.seen.image.spec.deactivated => ImagePhase::Deactivated,
            _ if self.serving().is_some() => ImagePhase::Active,
            Health::Stalled(..) => ImagePhase::Failed,
            _ if busy => ImagePhase::Importing,
            Health::Current(_) | Health::Progressing(_) | Health::Hindered(..) => ImagePhase::Queued,
        }
    }

    /// Whether the attempt under way is one at an upload of which nothing has come yet.
    fn waits_for_upload(&self) -> bool {
        let task = self.attempt_task();
        let uploads =
            task.and_then(|task| task.spec.import.as_ref()).is_some_and(|order| order.source.upload.is_some());
        uploads && self.status.progress.as_ref().is_none_or(|progress| progress.bytes_done == 0)
    }

    /// Where bytes are to be sent, while there is an attempt that takes them.
    fn upload_point(&self) -> Option<UploadPoint> {
        let attempt =
            self.status.attempt.as_ref().filter(|attempt| attempt.node.is_some() && attempt.from.is_empty())?;
        self.seen.image.spec.source.upload.as_ref()?;
        let metadata = &self.seen.image.metadata;
        let (namespace, name) = (metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        let task = self.attempt_task().map(|task| task.spec.attempt);
        task.filter(|number| *number == attempt.number)?;
        Some(UploadPoint { url: identity::data_url(self.seen.namespace, namespace, name) })
    }

    /// Repeats the facts of the serving revision where people and programs look first.
    fn mirror_current(&mut self, target: Option<i64>) {
        let current = self.serving().cloned();
        let locations = current.as_ref().map(|revision| self.shown_locations(revision, target)).unwrap_or_default();
        let status = &mut self.status;
        status.content = current.as_ref().and_then(|r| r.content.clone());
        status.locations = locations;
        let display = Display {
            virtual_size: status.content.as_ref().map(|content| human_size(content.virtual_size)),
            size: status.content.as_ref().map(|content| human_size(content.size)),
            stores: current.as_ref().map(store_names),
            progress: status.progress.as_ref().map(human_progress),
        };
        status.display = (display != Display::default()).then_some(display);
    }
}

impl Draft<'_> {
    /// Where the serving revision is, best first, and where it is not.
    fn shown_locations(&self, revision: &Revision, target: Option<i64>) -> Vec<Location> {
        let mut locations = revision.locations.clone();
        self.sort_best_first(&mut locations);
        let lacking = self.lacking.iter().filter(|_| Some(revision.number) == target);
        locations.extend(lacking.map(|(store, why)| {
            let corrupt = revision.gaps.iter().any(|gap| gap.store == *store && gap.last_failure.reason == CORRUPT);
            Location {
                store: store.clone(),
                phase: if corrupt { LocationPhase::Corrupt } else { LocationPhase::Missing },
                message: Some(why.chars().take(MAX_MESSAGE).collect()),
                ..Location::default()
            }
        }));
        locations
    }
}

fn with_suffix(health: Health, suffix: &str) -> Health {
    match health {
        Health::Current(message) => Health::Current(message + suffix),
        Health::Progressing(message) => Health::Progressing(message + suffix),
        Health::Hindered(reason, message) => Health::Hindered(reason, message + suffix),
        Health::Stalled(reason, message) => Health::Stalled(reason, message + suffix),
        Health::Deleting(reason, message) => Health::Deleting(reason, message + suffix),
    }
}

fn store_names(revision: &Revision) -> String {
    let mut names: Vec<_> = revision.copies().map(|location| location.store.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(",")
}

/// Bytes as people write them.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub fn human_size(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

fn human_progress(progress: &Progress) -> String {
    match progress.bytes_total {
        Some(total) if total > 0 => {
            let percent = i128::from(progress.bytes_done).saturating_mul(100) / i128::from(total);
            format!("{}%", percent.clamp(0, 100))
        }
        _ => human_size(progress.bytes_done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (10 << 30, "10 GiB"), (642_252_800, "612.5 MiB")];
        for (bytes, text) in cases {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(human_size(i64::MAX), "8192 PiB");
    }

    #[test]
    fn progress_is_a_share_where_the_whole_is_known() {
        let progress = |bytes_done, bytes_total| Progress { bytes_done, bytes_total, ..Progress::default() };
        assert_eq!(human_progress(&progress(34, Some(100))), "34%");
        assert_eq!(human_progress(&progress(200, Some(100))), "100%");
        assert_eq!(human_progress(&progress(2048, None)), "2 KiB");
        assert_eq!(human_progress(&progress(5, Some(0))), "5 B");
    }
}

//! Which revision spec asks for, and which are no longer asked for.

use super::Draft;
use crate::{
    api::{FailureReport, Gap, Location, LocationPhase, Revision, RevisionPhase, condition::events},
    controller::{fleet::Liveness, image::validate::spec_hash},
    kube::event::Happening,
};

/// The reason of a gap where a copy was that has rotted.
pub(super) const CORRUPT: &str = "Corrupt";

impl Draft<'_> {
    /// The number of the revision that spec asks for; `None` if none can be begun. Others that never became active are dropped, and of
    /// the active ones as many are kept as `revisionHistoryLimit` says.
    pub(super) fn desire(&mut self) -> Option<i64> {
        let hash = spec_hash(&self.seen.image.spec);
        let target = self.find(&hash).or_else(|| self.begin(&hash));
        self.forget_lost_locations();
        self.discard_rotten(target);
        self.drop_unusable(target);
        self.status.revision = self.elect(target);
        if let Some(current) = self.status.revision {
            self.prune(current);
        }
        target
    }

    /// The revision that serves: what spec asks for if it is there, else what served before, else any that is there. One that became
    /// active when spec had moved on already takes nobody's place.
    fn elect(&self, target: Option<i64>) -> Option<i64> {
        let active = || self.status.revisions.iter().filter(|r| r.phase == RevisionPhase::Active).map(|r| r.number);
        let there = |number: &i64| active().any(|other| other == *number);
        target.filter(there).or_else(|| self.status.revision.filter(there)).or_else(|| active().max())
    }

    /// An active revision of this hash, which may be an older one that spec went back to; else one that is on its way. One of which
    /// nothing but rot is left is not looked for: another takes its place.
    fn find(&self, hash: &str) -> Option<i64> {
        let of = |phase| {
            let same = |r: &&Revision| r.spec_hash == hash && r.phase == phase && !has_rotted(r);
            self.status.revisions.iter().filter(same).map(|revision| revision.number).max()
        };
        of(RevisionPhase::Active).or_else(|| of(RevisionPhase::Importing))
    }

    /// The digests of what revision `number` must be: its own, or those of the one whose place it takes because that has rotted.
    pub(super) fn known_digests(&self, number: i64) -> Vec<String> {
        let revisions = || self.status.revisions.iter();
        let Some(revision) = revisions().find(|revision| revision.number == number) else { return Vec::new() };
        let replaced = || revisions().filter(|r| has_rotted(r) && r.spec_hash == revision.spec_hash);
        let known = std::iter::once(revision).chain(replaced()).map(Revision::digests);
        known.into_iter().find(|digests| !digests.is_empty()).unwrap_or_default()
    }

    fn begin(&mut self, hash: &str) -> Option<i64> {
        self.seen.wanted.as_ref().ok()?;
        let highest = self.status.revisions.iter().map(|revision| revision.number).max();
        let number = self.status.latest_revision.max(highest).unwrap_or(0).saturating_add(1);
        self.status.latest_revision = Some(number);
        self.status.revisions.push(Revision {
            number,
            spec_hash: hash.to_owned(),
            phase: RevisionPhase::Importing,
            attempts: 0,
            tried: Vec::new(),
            content: None,
            imported_at: None,
            locations: Vec::new(),
            gaps: Vec::new(),
        });
        Some(number)
    }

    /// Copies on nodes that are gone are gone with them.
    fn forget_lost_locations(&mut self) {
        let (fleet, at) = (self.seen.fleet, self.seen.at);
        let gone =
            |location: &Location| location.node.as_ref().is_some_and(|node| fleet.liveness(node, at) == Liveness::Gone);
        let mut notes = Vec::new();
        for revision in &mut self.status.revisions {
            for location in revision.locations.extract_if(.., |location| gone(location)) {
                let (node, number, store) = (location.node.unwrap_or_default(), revision.number, location.store);
                notes.push(format!("node {node} is gone, and with it the copy of revision {number} in store {store}"));
            }
        }
        notes.into_iter().for_each(|note| self.tell(Happening::warning(events::LOCATION_LOST, "Place", note)));
    }

    /// What has rotted is removed where something sound is left, and `target` gets it anew from that. What is left of a revision that has
    /// rotted everywhere stays, marked and not served, until there is what takes its place: part of it may be all that there is.
    fn discard_rotten(&mut self, target: Option<i64>) {
        let (mut rotten, at) = (Vec::new(), self.time());
        let replaced = self.status.revisions.iter().any(|r| Some(r.number) == target && r.copies().next().is_some());
        for revision in &mut self.status.revisions {
            if !replaced && has_rotted(revision) {
                continue;
            }
            for location in revision.locations.extract_if(.., |location| location.phase == LocationPhase::Corrupt) {
                if Some(revision.number) == target {
                    let last_failure = FailureReport {
                        reason: CORRUPT.to_owned(),
                        rule: None,
                        message: location.message.clone().unwrap_or_default(),
                        retryable: true,
                        node: location.node.clone().unwrap_or_default(),
                        at: at.clone(),
                    };
                    let gap =
                        Gap { store: location.store.clone(), failures: 0, last_failure, retry_at: Some(at.clone()) };
                    revision.gaps.retain(|gap| gap.store != location.store);
                    revision.gaps.push(gap);
                }
                rotten.push((revision.number, location));
            }
        }
        rotten.iter().for_each(|(number, location)| self.discard(*number, location));
    }

    /// Lets go of the revisions that are nowhere, but for `keep`: those never finished, and those whose last copy is lost.
    fn drop_unusable(&mut self, keep: Option<i64>) {
        let (unwanted, kept) = std::mem::take(&mut self.status.revisions)
            .into_iter()
            .partition(|revision| revision.locations.is_empty() && Some(revision.number) != keep);
        self.status.revisions = kept;
        self.abandon(unwanted);
        // Those that stay get into no more stores, so nobody would take over what an attempt left there.
        let others: Vec<_> = self.status.revisions.iter().map(|r| r.number).filter(|n| Some(*n) != keep).collect();
        others.into_iter().for_each(|number| self.discard_tried(number, &[]));
        if self.status.attempt.as_ref().is_some_and(|attempt| Some(attempt.revision) != keep) {
            self.status.attempt = None;
            self.status.progress = None;
        }
    }

    fn prune(&mut self, current: i64) {
        let others = usize::try_from(self.seen.image.spec.revision_history_limit.saturating_sub(1)).unwrap_or(0);
        let active = self.status.revisions.iter().filter(|revision| revision.phase == RevisionPhase::Active);
        let mut old: Vec<_> = active.map(|revision| revision.number).filter(|number| *number != current).collect();
        old.sort_unstable_by(|a, b| b.cmp(a));
        for number in old.into_iter().skip(others) {
            let Some(at) = self.status.revisions.iter().position(|revision| revision.number == number) else {
                continue;
            };
            let revision = self.status.revisions.remove(at);
            self.abandon(vec![revision]);
            let note = format!("revision {number} is removed: revision {current} serves");
            self.tell(Happening::normal(events::REVISION_REMOVED, "Prune", note));
        }
    }

    /// What is left of revisions that are no more is to be removed.
    fn abandon(&mut self, revisions: Vec<Revision>) {
        for revision in revisions {
            revision.locations.iter().for_each(|location| self.discard(revision.number, location));
            revision.tried.iter().for_each(|store| self.discard_at(revision.number, store, None));
        }
    }

    /// Deletion: everything that is stored anywhere is to be removed.
    pub(super) fn abandon_everything(&mut self) {
        let all = std::mem::take(&mut self.status.revisions);
        self.abandon(all);
        self.status.revision = None;
        self.status.attempt = None;
        self.status.progress = None;
    }
}

/// Whether it was there, and nothing is left of it but what has rotted.
pub(super) fn has_rotted(revision: &Revision) -> bool {
    let mut locations = revision.locations.iter();
    revision.phase == RevisionPhase::Active
        && !revision.locations.is_empty()
        && locations.all(|location| location.phase == LocationPhase::Corrupt)
}

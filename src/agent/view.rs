//! The node's ImageTasks as the API server tells of them: a watch that survives its restarts.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use kube::{
    Api,
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event},
    },
};

use super::{queue::Entry, request};
use crate::api::ImageTask;

/// The first pause before a broken watch is begun again, and the longest: an agent that is 5 s late delays nobody.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Events = Pin<Box<dyn Stream<Item = Result<Event<ImageTask>, watcher::Error>> + Send>>;

/// All tasks of one node, as far as the queue needs to know them.
pub struct View {
    api: Api<ImageTask>,
    node: String,
    events: Events,
    tasks: BTreeMap<String, Entry>,
    /// What has come of a list that is not complete yet.
    incoming: Option<BTreeMap<String, Entry>>,
    complete: bool,
}

impl View {
    /// Begins to watch.
    pub fn open(api: Api<ImageTask>, node: &str) -> Self {
        let events = watch(&api, node);
        Self { api, node: node.to_owned(), events, tasks: BTreeMap::new(), incoming: None, complete: false }
    }

    /// Forgets everything and asks anew. Until the answer is complete, `tasks` gives nothing.
    pub fn reopen(&mut self) {
        self.events = watch(&self.api, &self.node);
        self.incoming = None;
        self.complete = false;
    }

    /// Waits for news.
    pub async fn next(&mut self) {
        match self.events.next().await {
            Some(Ok(event)) => self.apply(event),
            // What is known stays: an API server that restarts ends no work.
            Some(Err(error)) => tracing::warn!(%error, "watching this node's ImageTasks broke off; trying again"),
            // The stream of a watcher does not end; should it, a fresh one is right.
            None => self.reopen(),
        }
    }

    /// All tasks; nothing until the first list is complete.
    pub fn tasks(&self) -> Option<Vec<Entry>> {
        self.complete.then(|| self.tasks.values().cloned().collect())
    }

    fn apply(&mut self, event: Event<ImageTask>) {
        match event {
            Event::Init => self.incoming = Some(BTreeMap::new()),
            Event::InitApply(task) => {
                if let (Some(incoming), Some(entry)) = (&mut self.incoming, Entry::of(&task)) {
                    incoming.insert(entry.name.clone(), entry);
                }
            }
            Event::InitDone => {
                self.tasks = self.incoming.take().unwrap_or_default();
                self.complete = true;
            }
            Event::Apply(task) => {
                if let Some(entry) = Entry::of(&task) {
                    self.tasks.insert(entry.name.clone(), entry);
                }
            }
            Event::Delete(task) => {
                if let Some(name) = &task.metadata.name {
                    self.tasks.remove(name);
                }
            }
        }
    }
}

fn watch(api: &Api<ImageTask>, node: &str) -> Events {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    Box::pin(watcher::watcher(api.clone(), config).backoff(Pauses { next: FIRST_PAUSE }))
}

/// Doubling pauses.
pub struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(LONGEST_PAUSE);
        Some(request::jittered(pause))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.next = FIRST_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        // A client that is never asked: the tests feed events by hand.
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        View::open(Api::namespaced(client, "vitrine-system"), "n1")
    }

    fn task(name: &str, uid: &str) -> ImageTask {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "vitrine.dev/v1alpha1",
            "kind": "ImageTask",
            "metadata": { "name": name, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "action": "Delete",
                "image": { "namespace": "a", "name": "b", "uid": "c", "generation": 1 },
                "revision": 1, "nodeName": "n1", "attempt": 1,
                "delete": { "stores": [{ "name": "s" }], "fence": 1 },
            },
        }))
        .unwrap()
    }

    fn uids(view: &View) -> Option<Vec<String>> {
        view.tasks().map(|tasks| tasks.into_iter().map(|task| task.uid).collect())
    }

    #[tokio::test]
    async fn nothing_is_known_before_the_list_is_complete() {
        let mut view = view();
        view.apply(Event::Init);
        view.apply(Event::InitApply(task("x", "1")));
        assert_eq!(uids(&view), None);
        view.apply(Event::InitDone);
        view.apply(Event::Apply(task("y", "2")));
        assert_eq!(uids(&view).unwrap(), ["1", "2"]);
        view.apply(Event::Delete(task("x", "1")));
        assert_eq!(uids(&view).unwrap(), ["2"]);
    }

    #[tokio::test]
    async fn a_new_list_replaces_the_old_one_only_when_it_is_complete() {
        let mut view = view();
        for event in [Event::Init, Event::InitApply(task("x", "1")), Event::InitDone, Event::Init] {
            view.apply(event);
        }
        view.apply(Event::InitApply(task("x", "9")));
        assert_eq!(uids(&view).unwrap(), ["1"], "an API server that restarts ends no work");
        view.apply(Event::InitDone);
        assert_eq!(uids(&view).unwrap(), ["9"]);
        view.reopen();
        assert_eq!(uids(&view), None, "after a lapse of the Lease nothing old counts");
    }
}

//! Events (events.k8s.io): what happened, for people who look at an object. One that repeats word for word becomes a series.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::Instant;

/// The API refuses notes of more than 1 kB.
const MAX_NOTE: usize = 1000;
/// How long a note is remembered after it was last told: as long as kube's recorder remembers it.
const MEMORY: Duration = Duration::from_mins(6);
/// How many notes of one reason about one object get an event each. All others share one, as client-go has it.
const MAX_NOTES: usize = 10;
/// What the shared one's note begins with, in client-go's words.
const COMBINED: &str = "(combined from similar events): ";

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Whether it is a warning.
    pub warning: bool,
    /// In one word, from `api::condition`.
    pub reason: &'static str,
    /// What was being done, in one word.
    pub action: &'static str,
    /// For people.
    pub note: String,
}

impl Happening {
    /// Something went as it should.
    pub fn normal(reason: &'static str, action: &'static str, note: impl Into<String>) -> Self {
        Self { warning: false, reason, action, note: note.into() }
    }

    /// Something did not.
    pub fn warning(reason: &'static str, action: &'static str, note: impl Into<String>) -> Self {
        Self { warning: true, reason, action, note: note.into() }
    }
}

/// Publishes events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    told: Arc<Mutex<HashMap<Subject, Vec<Told>>>>,
}

/// The uid of what an event is about, and its reason.
type Subject = (String, &'static str);

/// A note that was told not long ago. It has a recorder of its own, for one takes events that differ in nothing but the note for the same,
/// and goes on showing the first note.
struct Told {
    note: String,
    recorder: Recorder,
    at: Instant,
}

impl Events {
    /// Publishes as `controller`, in the person of `instance` (a pod's name).
    pub fn new(client: Client, controller: &str, instance: &str) -> Self {
        let reporter = Reporter { controller: controller.to_owned(), instance: Some(instance.to_owned()) };
        Self { client, reporter, told: Arc::default() }
    }

    /// Publishes; a failure is logged and nothing more, because an event is never worth a retry.
    pub async fn publish(&self, about: &ObjectReference, what: &Happening) {
        let subject = (about.uid.clone().unwrap_or_default(), what.reason);
        let (note, recorder) = self.recorder(subject, &what.note);
        let event = Event {
            type_: if what.warning { EventType::Warning } else { EventType::Normal },
            reason: what.reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: what.action.to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, about).await {
            tracing::warn!(%error, reason = what.reason, "an event could not be published");
        }
    }

    /// Who tells `note`, and how it reads.
    fn recorder(&self, subject: Subject, note: &str) -> (String, Recorder) {
        // A panic elsewhere cannot leave the map half changed.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        told.retain(|_, notes| {
            notes.retain(|told| now.duration_since(told.at) < MEMORY);
            !notes.is_empty()
        });
        let notes = told.entry(subject).or_default();
        let own = notes.iter().any(|told| told.note == note) || notes.len() < MAX_NOTES;
        let note = if own { note.to_owned() } else { format!("{COMBINED}{note}") };
        let same = |told: &&mut Told| told.note == note || (!own && told.note.starts_with(COMBINED));
        let recorder = if let Some(told) = notes.iter_mut().find(same) {
            told.at = now;
            told.recorder.clone()
        } else {
            let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            notes.push(Told { note: note.clone(), recorder: recorder.clone(), at: now });
            recorder
        };
        (note, recorder)
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use http_body_util::BodyExt as _;
    use kube::client::Body;
    use serde_json::Value;
    use tower::{BoxError, service_fn};

    use super::*;

    /// What the API server is sent of events: whether it is a new one, its note, and how often it was seen.
    type Sent = Arc<Mutex<Vec<(bool, String, u64)>>>;

    fn events() -> (Events, Sent) {
        let sent = Sent::default();
        let seen = Arc::clone(&sent);
        let answer = move |request: Request<Body>| {
            let seen = Arc::clone(&seen);
            async move {
                let new = request.method() == Method::POST;
                let body = request.into_body().collect().await?.to_bytes();
                let event: Value = serde_json::from_slice(&body).unwrap();
                let note = event["note"].as_str().unwrap().to_owned();
                seen.lock().unwrap().push((new, note, event["series"]["count"].as_u64().unwrap_or(1)));
                Ok::<_, BoxError>(Response::new(Body::from(body.to_vec())))
            }
        };
        (Events::new(Client::new(service_fn(answer), "default"), "vitrine-operator", "pod"), sent)
    }

    fn image(uid: &str) -> ObjectReference {
        let (name, namespace) = (Some("debian".to_owned()), Some("team".to_owned()));
        ObjectReference { name, namespace, uid: Some(uid.to_owned()), ..ObjectReference::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn each_note_is_told_and_one_that_repeats_is_counted() {
        let (events, sent) = events();
        for note in ["revision 1", "revision 2", "revision 1", "revision 1", "revision 2"] {
            events.publish(&image("a"), &Happening::normal("ImportStarted", "Import", note)).await;
        }
        events.publish(&image("b"), &Happening::normal("ImportStarted", "Import", "revision 1")).await;
        let told = std::mem::take(&mut *sent.lock().unwrap());
        let told: Vec<_> = told.iter().map(|(new, note, count)| (*new, note.as_str(), *count)).collect();
        assert_eq!(
            told,
            [
                (true, "revision 1", 1),
                (true, "revision 2", 1),
                (false, "revision 1", 2),
                (false, "revision 1", 3),
                (false, "revision 2", 2),
                (true, "revision 1", 1),
            ]
        );
        tokio::time::advance(MEMORY).await;
        events.publish(&image("c"), &Happening::normal("ImportStarted", "Import", "revision 1")).await;
        assert_eq!(events.told.lock().unwrap().len(), 1, "what is long ago is forgotten");
    }

    #[tokio::test]
    async fn a_flood_of_notes_is_no_flood_of_events() {
        let (events, sent) = events();
        for number in 0..100 {
            events
                .publish(&image("a"), &Happening::normal("OrphanRemoved", "Collect", format!("object {number}")))
                .await;
        }
        events.publish(&image("a"), &Happening::normal("OrphanRemoved", "Collect", "object 3")).await;
        let told = sent.lock().unwrap();
        assert_eq!(told.iter().filter(|(new, ..)| *new).count(), MAX_NOTES + 1);
        assert_eq!(told[MAX_NOTES].1, format!("{COMBINED}object 10"));
        assert_eq!((&told[99].1, told[99].2), (&told[MAX_NOTES].1, 90));
        assert_eq!((told[100].1.as_str(), told[100].2), ("object 3", 2));
    }
}

//! Waiting until an Image is as was asked for, or is known not to become so.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    pipeline::{Progress, Stage},
};

use super::{connect::Cluster, images, text::bytes, view};
use crate::api::{
    Image,
    condition::{reasons, types},
};

/// How often is looked.
const POLL: Duration = Duration::from_millis(500);
/// After so long what is said of an Image is said of what was asked for last, though nothing shows it.
const HEARD: Duration = Duration::from_secs(20);
/// For so long an API server that does not answer is asked again.
const OUTAGE: Duration = Duration::from_secs(60);

/// How an Image stands with what its spec says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All is as spec says.
    Ready,
    /// It is being seen to.
    Underway,
    /// It will not be so until something is changed: why, and by which rule it was refused, if it was.
    Stalled(String, Option<String>),
}

/// How `image` stands. What was said of another spec than the present one does not count.
pub fn standing(image: &Image) -> Standing {
    let Some(status) = &image.status else { return Standing::Underway };
    if status.observed_generation != image.metadata.generation {
        return Standing::Underway;
    }
    let is = |type_| status.conditions.iter().find(|c| c.type_ == type_ && c.status == "True");
    if let Some(stalled) = is(types::STALLED) {
        let rule = status.attempt.as_ref().and_then(|attempt| attempt.last_failure.as_ref()?.rule.clone());
        return Standing::Stalled(stalled.message.clone(), rule);
    }
    if is(types::READY).is_some() { Standing::Ready } else { Standing::Underway }
}

/// Why `image` was given up after tries, so that another one may end otherwise; nothing if its spec is at fault, which no try mends.
pub fn given_up(image: &Image) -> Option<String> {
    let Standing::Stalled(why, _) = standing(image) else { return None };
    let at_fault =
        |c: &Condition| c.type_ == types::STALLED && c.status == "True" && c.reason == reasons::INVALID_CONFIGURATION;
    let status = image.status.as_ref()?;
    (!status.conditions.iter().any(at_fault)).then_some(why)
}

/// Why an Image came to nothing, as an error.
pub fn stalled(name: &str, why: &str, rule: Option<&str>) -> Error {
    match rule {
        Some(_) => Error::new(Kind::Refused, format!("Image {name} is refused: {why}")),
        None => Error::new(Kind::Unavailable, format!("Image {name} does not go on: {why}")),
    }
}

/// What is waited for, and how.
pub struct Waiting<'a> {
    /// The cluster and namespace.
    pub cluster: &'a Cluster,
    /// The Image.
    pub name: &'a str,
    /// How long; for ever if nothing is said.
    pub limit: Option<Duration>,
    /// Where is shown how far it is.
    pub progress: &'a Progress,
    /// Ends it.
    pub cancel: &'a CancellationToken,
}

impl Waiting<'_> {
    /// The Image, once it is Ready and `fits`, which tells whether what is said of it is said of what was asked for last.
    ///
    /// # Errors
    /// `Refused` or `Unavailable` if it will not be; `Unavailable` after the limit, `Cancelled` when asked to stop.
    pub async fn until(&self, fits: impl Fn(&Image) -> bool) -> Result<Image> {
        let (began, mut last, mut answered) = (Instant::now(), None, Instant::now());
        loop {
            match images::get(self.cluster, self.name).await {
                Ok(image) => {
                    self.show(&image);
                    let counts = fits(&image) || began.elapsed() > HEARD;
                    match standing(&image) {
                        Standing::Ready if counts => return Ok(image),
                        Standing::Stalled(why, rule) if counts => {
                            return Err(stalled(self.name, &why, rule.as_deref()));
                        }
                        Standing::Ready | Standing::Underway | Standing::Stalled(..) => {}
                    }
                    (last, answered) = (view::image::message(&image).map(str::to_owned), Instant::now());
                }
                Err(error) if error.kind() == Kind::Unavailable && answered.elapsed() < OUTAGE => {}
                Err(error) => return Err(error),
            }
            if self.limit.is_some_and(|limit| began.elapsed() > limit) {
                let last = last.unwrap_or_else(|| {
                    "nobody has looked at it: is there an operator? See `kubectl vitrine doctor`".into()
                });
                return Err(Error::new(Kind::Unavailable, format!("Image {} is not ready in time: {last}", self.name)));
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.cancel.cancelled() => return Err(self.interrupted()),
            }
        }
    }

    /// The Image, once the operator has taken note of the request `now` to try again.
    ///
    /// # Errors
    /// `Unavailable` if it does not.
    pub async fn heard(&self, now: &str) -> Result<Image> {
        let began = Instant::now();
        loop {
            let image = images::get(self.cluster, self.name).await?;
            let last = image.status.as_ref().and_then(|status| status.last_handled_retry.as_deref());
            if last == Some(now) {
                return Ok(image);
            }
            if began.elapsed() > self.limit.unwrap_or(HEARD) {
                let why = view::image::message(&image).unwrap_or("is there an operator? See `kubectl vitrine doctor`");
                let message = format!("Image {} is not tried again: {why}", self.name);
                return Err(Error::new(Kind::NotFound, message));
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.cancel.cancelled() => return Err(self.interrupted()),
            }
        }
    }

    fn interrupted(&self) -> Error {
        let (name, namespace) = (self.name, &self.cluster.namespace);
        Error::new(
            Kind::Cancelled,
            format!(
                "interrupted; the cluster goes on with Image {name}: kubectl vitrine image show {name} --namespace {namespace}"
            ),
        )
    }

    fn show(&self, image: &Image) {
        let Some(now) = image.status.as_ref().and_then(|status| status.progress.as_ref()) else { return };
        let (done, before) = (bytes(now.bytes_done), self.progress.snapshot().received);
        if done < before {
            self.progress.enter(Stage::Connecting);
            self.progress.receive(done);
        } else {
            self.progress.receive(done - before);
        }
        self.progress.expect(now.bytes_total.map(bytes));
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == now.stage).unwrap_or(Stage::Transferring);
        if stage != Stage::Connecting {
            self.progress.enter(stage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ImageSpec, ImageStatus},
        kube::condition::Health,
    };

    fn said(health: &Health, observed: i64) -> ImageStatus {
        let conditions = health.conditions(observed, &[], jiff::Timestamp::now());
        ImageStatus { observed_generation: Some(observed), conditions, ..ImageStatus::default() }
    }

    #[test]
    fn another_try_is_of_use_only_after_tries() {
        let mut image = Image::new("a", ImageSpec::default());
        image.metadata.generation = Some(2);
        assert_eq!(given_up(&image), None);
        for (health, observed, expected) in [
            (Health::Stalled(reasons::UNRECOVERABLE_ERROR, String::new()), 2, true),
            (Health::Stalled(reasons::RETRIES_EXHAUSTED, String::new()), 2, true),
            (Health::Stalled(reasons::RETRIES_EXHAUSTED, String::new()), 1, false),
            (Health::Stalled(reasons::INVALID_CONFIGURATION, String::new()), 2, false),
            (Health::Current(String::new()), 2, false),
        ] {
            image.status = Some(said(&health, observed));
            assert_eq!(given_up(&image).is_some(), expected, "{health:?}");
        }
    }

    #[test]
    fn what_was_said_of_an_older_spec_does_not_count() {
        let mut image = Image::new("a", ImageSpec::default());
        image.metadata.generation = Some(2);
        assert_eq!(standing(&image), Standing::Underway);
        let cases = [
            (Health::Current(String::new()), 1, Standing::Underway),
            (Health::Current(String::new()), 2, Standing::Ready),
            (Health::Progressing(String::new()), 2, Standing::Underway),
            (Health::Hindered("Waiting", String::new()), 2, Standing::Underway),
            (Health::Stalled("X", "why".to_owned()), 1, Standing::Underway),
            (Health::Stalled("X", "why".to_owned()), 2, Standing::Stalled("why".to_owned(), None)),
        ];
        for (health, observed, expected) in cases {
            image.status = Some(said(&health, observed));
            assert_eq!(standing(&image), expected);
        }
    }
}

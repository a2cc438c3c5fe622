//! What agents write down while they work on an Image: their logs, by Image or by task.

use futures::{AsyncBufReadExt as _, Stream, StreamExt as _, TryStreamExt as _, stream};
use jiff::SignedDuration;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams},
};
use serde_json::Value;
use vitrine_engine::error::{Error, Kind, Result};

use super::{
    connect::Cluster,
    explain::{Explain as _, explain},
};
use crate::api::{ImageTask, identity::AGENTS_DAEMON_SET};

/// Which lines are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Those about an Image, as `namespace/name`.
    Image(String),
    /// Those about a task.
    Task(String),
}

/// How far back, and whether what comes is waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach {
    /// Wait for more.
    pub follow: bool,
    /// Not older than this.
    pub since: Option<SignedDuration>,
}

/// What `name` means: a task that there is, else an Image of the namespace that is meant; and the node of a task.
///
/// # Errors
/// If the API server does not answer, or the person may not see tasks.
pub async fn subject(cluster: &Cluster, site: &str, name: &str) -> Result<(Subject, Option<String>)> {
    let tasks: Api<ImageTask> = Api::namespaced(cluster.client.clone(), site);
    match tasks.get_opt(name).await {
        Ok(Some(task)) => Ok((Subject::Task(name.to_owned()), Some(task.spec.node_name))),
        Ok(None) => Ok((Subject::Image(format!("{}/{name}", cluster.namespace)), None)),
        Err(error) => Err(super::tasks::refusal(&error, site)),
    }
}

/// The lines about `subject` that agents write, of the one on `node` or of all.
///
/// # Errors
/// If there are none to be asked, or the person may not read their logs.
pub async fn lines(
    cluster: &Cluster,
    site: &str,
    subject: Subject,
    node: Option<&str>,
    reach: Reach,
) -> Result<impl Stream<Item = Result<Line>> + use<>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), site);
    let names = agents(cluster, site, node).await?;
    let params = LogParams {
        follow: reach.follow,
        since_seconds: reach.since.map(|since| since.as_secs().max(1)),
        ..LogParams::default()
    };
    let mut all = Vec::new();
    for name in names {
        let read = match pods.log_stream(&name, &params).await {
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                let message = format!(
                    "you may not read the agents' logs (get pods/log in namespace {site}): that is for who administers Vitrine"
                );
                return Err(Error::new(Kind::Denied, message));
            }
            read => read.explain(|| format!("reading the log of pod {name}"))?,
        };
        let subject = subject.clone();
        let broke = |e| Error::with_source(Kind::Unavailable, "a log broke off", e);
        let of_it = read.lines().map_err(broke).try_filter_map(move |line| {
            let subject = subject.clone();
            async move { Ok(Line::parse(&line).filter(|line| line.is_about(&subject))) }
        });
        all.push(of_it.boxed());
    }
    if reach.follow {
        return Ok(stream::select_all(all).boxed());
    }
    let mut lines: Vec<Line> = Vec::new();
    for mut one in all {
        while let Some(line) = one.try_next().await? {
            lines.push(line);
        }
    }
    lines.sort_by(|a, b| a.time.cmp(&b.time));
    Ok(stream::iter(lines.into_iter().map(Ok)).boxed())
}

/// The agents' pods, on `node` if one is named.
async fn agents(cluster: &Cluster, site: &str, node: Option<&str>) -> Result<Vec<String>> {
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), site);
    let set = sets.get_opt(AGENTS_DAEMON_SET).await.map_err(|error| super::tasks::refusal(&error, site))?;
    let none =
        |what: &str| Error::new(Kind::NotFound, format!("{what} in namespace {site}: see `kubectl vitrine doctor`"));
    let set = set.ok_or_else(|| none(&format!("there is no DaemonSet {AGENTS_DAEMON_SET}")))?;
    let labels = set.spec.and_then(|spec| spec.selector.match_labels).unwrap_or_default();
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut params = ListParams::default().labels(&labels.join(","));
    if let Some(node) = node {
        params = params.fields(&format!("spec.nodeName={node}"));
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), site);
    let found = pods.list(&params).await.map_err(|error| explain(&error).context("looking for agents"))?;
    if found.items.is_empty() {
        return Err(none("there is no agent"));
    }
    Ok(found.items.iter().map(ResourceExt::name_any).collect())
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    time: String,
    raw: String,
    value: Value,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let time = value.get("timestamp")?.as_str()?.to_owned();
        Some(Self { time, raw: text.to_owned(), value })
    }

    fn is_about(&self, subject: &Subject) -> bool {
        let (key, wanted) = match subject {
            Subject::Image(image) => ("image", image),
            Subject::Task(task) => ("task", task),
        };
        let spans = self.value.get("spans").and_then(Value::as_array);
        spans.is_some_and(|spans| spans.iter().any(|span| span.get(key).and_then(Value::as_str) == Some(wanted)))
    }

    /// As it was written.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// For people: when, how bad, what, and what more is said.
    pub fn text(&self) -> String {
        let level = self.value.get("level").and_then(Value::as_str).unwrap_or_default();
        let fields = self.value.get("fields").and_then(Value::as_object);
        let message = fields.and_then(|fields| fields.get("message")?.as_str()).unwrap_or_default();
        let more = fields.into_iter().flatten().filter(|(key, _)| *key != "message");
        let more: Vec<_> = more.map(|(key, value)| format!("{key}={}", plain(value))).collect();
        let task = self.value.get("spans").and_then(Value::as_array).and_then(|spans| {
            spans.iter().find_map(|span| span.get("attempt").map(|attempt| format!(" (attempt {})", plain(attempt))))
        });
        let more = if more.is_empty() { String::new() } else { format!(" {}", more.join(" ")) };
        format!("{} {level:5} {message}{more}{}", self.time, task.unwrap_or_default())
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_of_their_image_and_task() {
        let text = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","fields":{"message":"begun","action":"Import"},
            "target":"vitrine::agent","span":{"name":"inner"},
            "spans":[{"attempt":2,"image":"team/debian","task":"x-r1-import-2","name":"task"},{"name":"inner"}]}"#;
        let line = Line::parse(text).unwrap();
        assert!(line.is_about(&Subject::Image("team/debian".to_owned())));
        assert!(line.is_about(&Subject::Task("x-r1-import-2".to_owned())));
        assert!(!line.is_about(&Subject::Image("team/debian-2".to_owned())));
        assert_eq!(line.text(), "2026-01-01T00:00:00Z INFO  begun action=Import (attempt 2)");
        assert_eq!(Line::parse("plain text"), None);
    }
}

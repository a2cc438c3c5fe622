//! Finds what is wrong with an installation, and says what to do: from what anybody may see who administers it.
//!
//! Each file looks at one part. What is looked at is read first and judged afterwards, by functions that hold no client.

mod agents;
mod data;
mod images;
mod install;
mod operator;
mod rights;
mod stores;

use std::fmt::Write as _;

use kube::{Api, api::ListParams};
use serde::Serialize;

use super::{connect::Cluster, data::door::Choice, explain::explain, text::printable};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, or may be meant so; somebody should look.
    Warning,
    /// It does not work.
    Problem,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do about it: a command, or whom to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject: subject.into(), message: message.into(), remedy: None }
    }

    fn warning(subject: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (subject, message, remedy) = (subject.into(), message.into(), Some(remedy.into()));
        Self { level: Level::Warning, subject, message, remedy }
    }

    fn problem(subject: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Problem, ..Self::warning(subject, message, remedy) }
    }
}

/// What is examined.
pub struct Case<'a> {
    /// The cluster, and the namespace whose Images are looked at.
    pub cluster: &'a Cluster,
    /// Vitrine's namespace.
    pub site: &'a str,
    /// How the data API is reached.
    pub way: Choice,
}

/// Examines everything. What cannot be reached at all leaves the rest out.
pub async fn examine(case: &Case<'_>) -> Vec<Finding> {
    let server = install::api_server(case.cluster).await;
    let answers = server.level != Level::Problem;
    let mut findings = vec![server];
    if !answers {
        return findings;
    }
    let kinds = install::kinds(case.cluster).await;
    let known = kinds.iter().all(|finding| finding.level != Level::Problem);
    findings.extend(kinds);
    if !known {
        return findings;
    }
    findings.extend(install::policies(case.cluster).await);
    findings.extend(operator::examine(case).await);
    findings.extend(agents::examine(case).await);
    findings.extend(stores::examine(case.cluster).await);
    findings.extend(data::examine(case).await);
    findings.extend(rights::examine(case).await);
    findings.extend(images::examine(case.cluster).await);
    findings
}

/// The worst of them.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

/// For people: the worst last, where it is seen.
pub fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or(0);
    let mut sorted: Vec<_> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.level);
    let mut text = String::new();
    for Finding { level, subject, message, remedy } in sorted {
        let level = match level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{level:8} {subject:width$}  {}", printable(message));
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "{:8} {:width$}  → {}", "", "", printable(remedy));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    let _ = writeln!(text, "\n{problems} problems, {warnings} warnings, {} in order", count(Level::Ok));
    text
}

/// Objects of a kind, or what is to be said where they may not be seen.
async fn listed<K>(api: Api<K>, params: &ListParams, subject: &str) -> Result<Vec<K>, Finding>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.list(params).await.map(|list| list.items).map_err(|error| unseen(subject, &error))
}

/// One object, or what is to be said where it may not be seen.
async fn one<K>(api: Api<K>, name: &str, subject: &str) -> Result<Option<K>, Finding>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.get_opt(name).await.map_err(|error| unseen(subject, &error))
}

fn unseen(subject: &str, error: &kube::Error) -> Finding {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => Finding::warning(
            subject,
            format!("you may not see it: {}", status.message),
            "have somebody with the rights of an administrator run `kubectl vitrine doctor`",
        ),
        other => Finding::problem(subject, explain(other).to_string(), "try again when the API server answers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_stands_last_and_counts() {
        let findings = [Finding::problem("b", "is broken", "mend it"), Finding::ok("a", "is well")];
        assert_eq!(worst(&findings), Level::Problem);
        assert_eq!(worst(&[]), Level::Ok);
        let text = report(&findings);
        assert!(text.starts_with("ok       a  is well\nPROBLEM  b  is broken\n            → mend it\n"), "{text}");
        assert!(text.ends_with("1 problems, 0 warnings, 1 in order\n"), "{text}");
    }
}

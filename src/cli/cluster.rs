//! What every verb that talks to a cluster takes: which one, as whom, where; and how it shows and waits.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, ValueHint};
use kube::Resource;
use serde::Serialize;
use serde_json::{Value, json};
use vitrine_engine::error::{Error, Kind, Result};

use super::output::write;
use crate::client::{
    connect::{Choice, Cluster},
    table::Table,
    view::Shown,
};

/// As kubectl has them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster (as for kubectl)")]
pub struct ClusterFlags {
    /// A kubeconfig other than KUBECONFIG and ~/.kube/config
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    kubeconfig: Option<PathBuf>,
    /// A context other than the current one
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
    /// The namespace [default: the context's]
    #[arg(short, long, value_name = "NAME", global = true)]
    namespace: Option<String>,
    /// Act as this user; you must be allowed to
    #[arg(long = "as", value_name = "USER", global = true)]
    impersonate: Option<String>,
    /// With this group; may be given several times
    #[arg(long = "as-group", value_name = "GROUP", global = true, requires = "impersonate")]
    groups: Vec<String>,
    /// A token to use instead of what the kubeconfig has
    #[arg(long, value_name = "TOKEN", global = true, env = "VITRINE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// How long one request to the API server may be without an answer, as 30s or 2m
    #[arg(long, value_name = "DURATION", global = true, value_parser = duration)]
    request_timeout: Option<Duration>,
}

impl ClusterFlags {
    /// The cluster that they name.
    ///
    /// # Errors
    /// If there is no way to one.
    pub async fn open(&self) -> Result<Cluster> {
        let choice = Choice {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: self.namespace.clone(),
            impersonate: self.impersonate.clone(),
            groups: self.groups.clone(),
            token: self.token.clone(),
            request_timeout: self.request_timeout,
        };
        choice.open().await
    }

    /// The namespace that is meant, also where there is no way to a cluster.
    pub async fn namespace(&self) -> String {
        let of_context = async || self.open().await.map(|cluster| cluster.namespace);
        match &self.namespace {
            Some(namespace) => namespace.clone(),
            None => of_context().await.unwrap_or_else(|_| "default".to_owned()),
        }
    }

    /// The words that name the same cluster and namespace again, whatever the current context is by then. A token is not among them.
    pub fn words(&self, cluster: &Cluster) -> Vec<String> {
        let mut words = vec!["--namespace".to_owned(), cluster.namespace.clone()];
        let kubeconfig = self.kubeconfig.as_ref().map(|path| path.display().to_string());
        for (name, value) in [("--kubeconfig", &kubeconfig), ("--context", &self.context), ("--as", &self.impersonate)]
        {
            if let Some(value) = value {
                words.extend([name.to_owned(), value.clone()]);
            }
        }
        words
    }
}

/// Where Vitrine itself runs.
#[derive(Args, Clone, Debug, Default)]
pub struct SiteFlag {
    /// The namespace of Vitrine's own pods [default: found, or vitrine-system]
    #[arg(long, value_name = "NAME", env = "VITRINE_NAMESPACE", global = true)]
    pub vitrine_namespace: Option<String>,
}

/// Whether a verb waits for what it asked for.
#[derive(Args, Clone, Copy, Debug)]
pub struct WaitFlags {
    /// Wait until it is done, and show how far it is
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, as 90s, 10m or 2h [default: as long as it takes]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "wait")]
    pub timeout: Option<Duration>,
}

/// How lists and single objects are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people; may change
    #[default]
    Table,
    /// For people, with more columns
    Wide,
    /// The objects as the API server has them
    Json,
    /// The same
    Yaml,
    /// Kind and name, one on each line
    Name,
}

impl Form {
    /// Shows a list.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print_list<K: Shown + Serialize>(self, objects: &[K], everywhere: bool) -> Result<()> {
        match self {
            Self::Table | Self::Wide if objects.is_empty() => {
                let place = if everywhere { "" } else { " in this namespace" };
                eprintln!("No {}{place}.", K::plural(&()));
                Ok(())
            }
            Self::Table | Self::Wide => write(&table(objects, self == Self::Wide, everywhere)),
            Self::Name => write(&objects.iter().map(|object| object.full_name() + "\n").collect::<String>()),
            Self::Json | Self::Yaml => {
                self.print_value(&json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": objects }))
            }
        }
    }

    /// Shows one object; `sheet` is what people see of it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print_one<K: Shown + Serialize>(self, object: &K, sheet: impl FnOnce() -> String) -> Result<()> {
        match self {
            Self::Table | Self::Wide => write(&sheet()),
            Self::Name => write(&(object.full_name() + "\n")),
            Self::Json | Self::Yaml => self.print_value(object),
        }
    }

    /// Writes a value for programs.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print_value(self, value: &impl Serialize) -> Result<()> {
        let fault = |e: String| Error::new(Kind::Internal, format!("writing the result as text: {e}"));
        let text = match self {
            Self::Yaml => serde_yaml::to_string(value).map_err(|e| fault(e.to_string()))?,
            _ => serde_json::to_string_pretty(value).map_err(|e| fault(e.to_string()))? + "\n",
        };
        write(&text)
    }

    /// Tells that something was `done` with an object, or shows it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn tell<K: Shown + Serialize>(self, object: &K, done: &str) -> Result<()> {
        match self {
            Self::Table | Self::Wide => write(&format!("{} {done}\n", object.full_name())),
            Self::Name | Self::Json | Self::Yaml => self.print_one(object, String::new),
        }
    }
}

fn table<K: Shown>(objects: &[K], wide: bool, everywhere: bool) -> String {
    let now = jiff::Timestamp::now();
    let mut table = Table::new(["NAMESPACE"].into_iter().filter(|_| everywhere).chain(K::headings(wide)));
    for object in objects {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        table.row(everywhere.then_some(namespace).into_iter().chain(object.cells(wide, now)));
    }
    table.text()
}

/// A duration as Kubernetes writes them: `90s`, `1h30m`, or a plain number of seconds.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write 90s, 10m, 1h30m or a number of seconds");
    if let Ok(seconds) = text.parse::<u64>() {
        return if seconds > 0 { Ok(Duration::from_secs(seconds)) } else { Err(wrong()) };
    }
    let schedule = crate::api::VerifySchedule { interval: text.to_owned() };
    schedule.interval().filter(|_| text.chars().all(|c| c.is_ascii_digit() || "hms".contains(c))).ok_or_else(wrong)
}

/// `key=value`.
///
/// # Errors
/// If there is no `=`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is no pair: write key=value"))?;
    if key.is_empty() {
        return Err(format!("`{text}` has no key: write key=value"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// An object without what only the API server and the cluster write, for git.
pub fn manifest(object: &(impl Serialize + Resource<DynamicType = ()>)) -> Result<Value> {
    let fault = |e| Error::with_source(Kind::Internal, "writing a manifest", e);
    let mut value = serde_json::to_value(object).map_err(fault)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Image, ImageSpec};

    #[test]
    fn durations_are_as_in_kubernetes() {
        let seconds = |text: &str| duration(text).map(|duration| duration.as_secs());
        assert_eq!([seconds("90"), seconds("90s"), seconds("1h30m")], [Ok(90), Ok(90), Ok(5400)]);
        for wrong in ["", "0", "0s", "1x", "-1", "m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs_have_a_key() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(pair("a=").unwrap().1, "");
        assert!(pair("a").is_err() && pair("=b").is_err());
    }

    #[test]
    fn namespaces_stand_first_in_lists_of_all() {
        let mut image = Image::new("a", ImageSpec::default());
        image.metadata.namespace = Some("team".to_owned());
        let text = table(&[image], false, true);
        let mut lines = text.lines().map(|line| line.split_whitespace().next().unwrap());
        assert_eq!((lines.next(), lines.next()), (Some("NAMESPACE"), Some("team")));
    }
}

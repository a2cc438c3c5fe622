//! What verbs that talk to a Ceph cluster have in common: how it is reached, and how objects and images in it are named.
//!
//! A key comes out of a file and never stands on the command line, where every process of the machine can read it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueHint};
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::ObjectKey,
    store::rbd::{RbdCluster, RbdOptions, RbdStore},
};

use super::work::interruption;

/// What the store is called in messages: nobody has given it a name here.
const STORE: &str = "ceph";
/// Larger than any file of configuration or keys, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How a Ceph cluster is reached.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "For Ceph (as its own commands have it)")]
pub struct Connection {
    /// The cluster's configuration
    #[arg(long = "ceph-conf", value_name = "FILE", value_hint = ValueHint::FilePath, default_value = "/etc/ceph/ceph.conf")]
    conf: PathBuf,
    /// Addresses of the monitors, separated by commas, instead of a configuration
    #[arg(long = "ceph-monitors", value_name = "ADDRESSES", conflicts_with = "conf")]
    monitors: Option<String>,
    /// The user, without `client.`
    #[arg(long = "ceph-user", value_name = "NAME", default_value = "admin")]
    user: String,
    /// A keyring with the user's key [default: /etc/ceph/ceph.client.NAME.keyring]
    #[arg(long = "ceph-keyring", value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "key_file")]
    keyring: Option<PathBuf>,
    /// A file with the user's key and nothing else
    #[arg(long = "ceph-key-file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    key_file: Option<PathBuf>,
    /// How long the monitors may take to answer, in seconds
    #[arg(long = "ceph-timeout", value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

impl Connection {
    /// Opens the pool that `location` is in.
    ///
    /// # Errors
    /// What the files and the cluster say; `InvalidInput` if it is another cluster than the location's.
    pub async fn open(&self, location: &Location) -> Result<RbdStore> {
        let store = self.connect(&location.pool, location.namespace.as_deref()).await?;
        match &location.cluster {
            Some(wanted) if wanted != store.cluster_id() => {
                let message = format!(
                    "the object is in Ceph cluster {wanted}, and this is cluster {}: name the other one's --ceph-conf or --ceph-monitors",
                    store.cluster_id()
                );
                Err(Error::new(Kind::InvalidInput, message))
            }
            _ => Ok(store),
        }
    }

    /// Opens `place`, which is `POOL` or `POOL/NAMESPACE`.
    ///
    /// # Errors
    /// What the files and the cluster say; `InvalidInput` if it is no place.
    pub async fn open_place(&self, place: &str) -> Result<RbdStore> {
        let (pool, namespace) = place.split_once('/').map_or((place, None), |(pool, rest)| (pool, Some(rest)));
        if pool.is_empty() || namespace.is_some_and(|namespace| namespace.is_empty() || namespace.contains('/')) {
            let message = "a pool is written as rbd:POOL or rbd:POOL/NAMESPACE; a folder of that name as ./rbd:…";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        self.connect(pool, namespace).await
    }

    async fn connect(&self, pool: &str, namespace: Option<&str>) -> Result<RbdStore> {
        let options = self.options(pool, namespace)?;
        let stop = interruption()?;
        let opening = tokio::task::spawn_blocking(move || RbdStore::open(STORE, &options));
        tokio::select! {
            opened = opening => opened.map_err(|e| Error::with_source(Kind::Internal, "connecting to Ceph", e))?,
            () = stop.cancelled() => Err(Error::new(Kind::Cancelled, "interrupted while connecting to Ceph")),
        }
    }

    fn options(&self, pool: &str, namespace: Option<&str>) -> Result<RbdOptions> {
        let cluster = match &self.monitors {
            Some(monitors) => RbdCluster::Monitors(monitors.clone()),
            None => RbdCluster::Config(read(&self.conf, "give the cluster's with --ceph-conf, or --ceph-monitors")?),
        };
        let user = self.user.strip_prefix("client.").unwrap_or(&self.user);
        Ok(RbdOptions {
            namespace: namespace.map(str::to_owned),
            connect_timeout: Duration::from_secs(self.timeout),
            ..RbdOptions::new(cluster, user, self.key(user)?, pool)
        })
    }

    fn key(&self, user: &str) -> Result<String> {
        if let Some(file) = &self.key_file {
            let text = read(file, "give the file with the key with --ceph-key-file")?;
            let key = text.trim();
            let lacking = || lacking(file, "is not one key: give a keyring with --ceph-keyring");
            return if key.is_empty() || key.contains(char::is_whitespace) {
                Err(lacking())
            } else {
                Ok(key.to_owned())
            };
        }
        let usual = || PathBuf::from(format!("/etc/ceph/ceph.client.{user}.keyring"));
        let file = self.keyring.clone().unwrap_or_else(usual);
        let text = read(&file, "give the file with the key with --ceph-keyring or --ceph-key-file")?;
        key_in(&text, user).ok_or_else(|| lacking(&file, &format!("has no key of client.{user}")))
    }
}

/// The key of `client.<user>` in the text of a keyring.
fn key_in(text: &str, user: &str) -> Option<String> {
    let section = format!("[client.{user}]");
    let lines = text.lines().map(str::trim).skip_while(|line| *line != section).skip(1);
    let mut own = lines.take_while(|line| !line.starts_with('['));
    own.find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "key").then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn lacking(file: &Path, what: &str) -> Error {
    Error::new(Kind::InvalidInput, format!("{} {what}", file.display()))
}

/// The text of a small file. `else_do` says what to do if there is none.
fn read(file: &Path, else_do: &str) -> Result<String> {
    let mut text = String::new();
    let opened = fs::File::open(file);
    let read = opened.and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE), &mut text));
    read.map(|_| text).map_err(|error| Error::io(format!("reading {} ({else_do})", file.display()), error))
}

/// A published object of a store in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The cluster's id, if it was told.
    cluster: Option<String>,
    pool: String,
    namespace: Option<String>,
    /// The object.
    pub key: ObjectKey,
}

impl Location {
    /// Where it is in `store`, as a URL.
    pub fn url(&self, store: &RbdStore) -> String {
        format!("rbd://{}/{}/{}/snap", store.cluster_id(), place(&self.pool, self.namespace.as_deref()), self.key)
    }
}

impl FromStr for Location {
    type Err = String;

    /// `rbd://FSID/POOL[/NAMESPACE]/IMAGE/snap`, as an Image's status has it, or `POOL[/NAMESPACE]/IMAGE[@snap]`, as `rbd` has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "name an object by its location, rbd://FSID/POOL/IMAGE/snap, or as rbd does, POOL/IMAGE; a namespace stands behind the \
             pool"
                .to_owned()
        };
        let (cluster, spec) = match text.strip_prefix("rbd://") {
            None => (None, text.strip_suffix("@snap").unwrap_or(text)),
            Some(rest) => {
                let (cluster, rest) = rest.split_once('/').ok_or_else(wrong)?;
                (Some(cluster.to_owned()), rest.strip_suffix("/snap").ok_or_else(wrong)?)
            }
        };
        let ImageName { pool, namespace, name } = spec.parse().map_err(|_| wrong())?;
        let key = ObjectKey::parse(&name).ok_or_else(|| {
            format!("{name} is no object of a store, which are called UID-rREVISION: `rbd clone` and `rbd children` are for others")
        })?;
        Ok(Self { cluster, pool, namespace, key })
    }
}

/// An image of a pool, whatever it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    pool: String,
    namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ImageName {
    /// Its pool and namespace, as `rbd` writes them.
    pub fn place(&self) -> String {
        place(&self.pool, self.namespace.as_deref())
    }
}

fn place(pool: &str, namespace: Option<&str>) -> String {
    namespace.map_or_else(|| pool.to_owned(), |namespace| format!("{pool}/{namespace}"))
}

impl FromStr for ImageName {
    type Err = String;

    /// `POOL[/NAMESPACE]/NAME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        let plain = parts.iter().all(|part| !part.is_empty() && !part.contains(['@', '\0']));
        let (pool, namespace, name) = match *parts.as_slice() {
            [pool, name] if plain => (pool, None, name),
            [pool, namespace, name] if plain => (pool, Some(namespace), name),
            _ => return Err("name an image as rbd does: POOL/NAME or POOL/NAMESPACE/NAME".to_owned()),
        };
        Ok(Self { pool: pool.to_owned(), namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str) -> Option<(Option<String>, String, Option<String>, String)> {
        let Location { cluster, pool, namespace, key } = text.parse().ok()?;
        Some((cluster, pool, namespace, key.to_string()))
    }

    #[test]
    fn objects_are_named_as_status_and_as_rbd_name_them() {
        let found = |cluster: Option<&str>, namespace: Option<&str>| {
            Some((cluster.map(str::to_owned), "p".to_owned(), namespace.map(str::to_owned), "5f0c-r3".to_owned()))
        };
        assert_eq!(location("rbd://f/p/5f0c-r3/snap"), found(Some("f"), None));
        assert_eq!(location("rbd://f/p/n/5f0c-r3/snap"), found(Some("f"), Some("n")));
        assert_eq!(location("p/5f0c-r3"), found(None, None));
        assert_eq!(location("p/n/5f0c-r3@snap"), found(None, Some("n")));
        for wrong in [
            "",
            "p",
            "5f0c-r3",
            "rbd://f/p/5f0c-r3",
            "rbd://f",
            "p/n/m/5f0c-r3",
            "p//5f0c-r3",
            "p/volume",
            "p/5f0c-r3@x",
        ] {
            assert_eq!(location(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_key_is_found_in_its_section() {
        let text = "# keys\n[client.a]\n\tkey = AAA==\n\tcaps mon = \"key = no\"\n[client.b]\nkey=\"BBB=\"\n";
        assert_eq!(key_in(text, "a").as_deref(), Some("AAA=="));
        assert_eq!(key_in(text, "b").as_deref(), Some("BBB="));
        assert_eq!(key_in(text, "c"), None);
        assert_eq!(key_in("[client.c]\n[client.d]\nkey = x", "c"), None);
    }
}

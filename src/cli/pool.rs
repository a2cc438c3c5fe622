//! A pool of a Ceph cluster on the command line. It is found and entered as Ceph's own commands do it: with a `ceph.conf` and a keyring.
//!
//! Knows where these lie and how a keyring is written. A key is read from a file only: what stands on a command line, everybody on the
//! machine can read.

use std::{fs, path::PathBuf};

use clap::{Args, ValueHint};
use vitrine_engine::{
    error::{Error, Kind, Result},
    store::rbd::{RbdCluster, RbdOptions},
};

/// How a Ceph cluster is found and entered.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "For stores rbd:POOL[/NAMESPACE]")]
pub struct Ceph {
    /// The cluster's configuration, which names its monitors
    #[arg(long = "ceph-conf", value_name = "FILE", value_hint = ValueHint::FilePath, default_value = "/etc/ceph/ceph.conf")]
    conf: PathBuf,
    /// The user, without `client.`
    #[arg(long = "ceph-user", value_name = "NAME", default_value = "admin")]
    user: String,
    /// The file with the user's key [default: /etc/ceph/ceph.client.NAME.keyring]
    #[arg(long = "ceph-keyring", value_name = "FILE", value_hint = ValueHint::FilePath)]
    keyring: Option<PathBuf>,
}

impl Ceph {
    /// Options for `pool`, which is a pool's name with perhaps `/` and a namespace behind it.
    ///
    /// # Errors
    /// `InvalidInput` if it is none, or the keyring has no key of the user; `NotFound`, `Denied` or `Io` if a file cannot be read.
    pub fn options(&self, pool: &str) -> Result<RbdOptions> {
        let (pool, namespace) = pool.split_once('/').map_or((pool, None), |(pool, namespace)| (pool, Some(namespace)));
        if pool.is_empty() || namespace.is_some_and(|namespace| namespace.is_empty() || namespace.contains('/')) {
            let message = "a pool is written as rbd:POOL or rbd:POOL/NAMESPACE; a folder of that name as ./rbd:…";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let config = read(&self.conf, "--ceph-conf")?;
        let mut options = RbdOptions::new(RbdCluster::Config(config), &self.user, self.key()?, pool);
        options.namespace = namespace.map(str::to_owned);
        Ok(options)
    }

    fn key(&self) -> Result<String> {
        let usual = || format!("/etc/ceph/ceph.client.{}.keyring", self.user).into();
        let path = self.keyring.clone().unwrap_or_else(usual);
        key_in(&read(&path, "--ceph-keyring")?, &self.user).ok_or_else(|| {
            let message = format!("{} has no key of client.{}", path.display(), self.user);
            Error::new(Kind::InvalidInput, message)
        })
    }
}

fn read(path: &PathBuf, option: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::io(format!("{} (see {option})", path.display()), e))
}

/// The key of `user` in a keyring: a section `[client.NAME]` with a line `key = …`.
fn key_in(keyring: &str, user: &str) -> Option<String> {
    let mut inside = false;
    for line in keyring.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = section.trim().strip_prefix("client.") == Some(user);
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == "key"
        {
            return Some(value.trim().to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_gives_the_key_of_the_user_that_is_asked_for() {
        let keyring = "[mon.]\n\tkey = AAA=\n[client.admin]\n\tkey = AQA==\n\tcaps mon = \"allow *\"\n[client.glance]\nkey=AQB==\n";
        assert_eq!(key_in(keyring, "admin").as_deref(), Some("AQA=="));
        assert_eq!(key_in(keyring, "glance").as_deref(), Some("AQB=="));
        assert_eq!(key_in(keyring, "nova"), None);
        assert_eq!(key_in("key = AQC==", "admin"), None);
    }
}

//! A pool of a Ceph cluster as a store: from what an ImageStore and its Secret say to a connection.
//!
//! Knows the names of the Secret's keys, which are ceph-csi's. What it reads there is shown nowhere.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use vitrine_engine::{
    error::{Error, Kind, Result},
    store::rbd::{RbdCluster, RbdOptions, RbdStore},
};

use super::secret;
use crate::api::RbdBackend;

/// How long the monitors may take to answer: less than a probe has, so that what they did not do is told.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

const USER: &str = "userID";
const KEY: &str = "userKey";
const CONFIG: &str = "ceph.conf";

/// Connects to the pool of the ImageStore `name`.
///
/// # Errors
/// `Unavailable` if the Secret cannot be read or lacks something, or the cluster cannot be reached, and what else opening says.
pub async fn open(secrets: &Api<Secret>, name: &str, backend: &RbdBackend, owner: Option<String>) -> Result<RbdStore> {
    let secret = secret::read(secrets, &backend.secret_ref).await.map_err(|why| lacking(name, backend, &why))?;
    let (name, options) = (name.to_owned(), RbdOptions { owner, ..options(name, backend, &secret)? });
    tokio::task::spawn_blocking(move || RbdStore::open(&name, &options))
        .await
        .unwrap_or_else(|e| Err(Error::with_source(Kind::Internal, "opening a store did not end", e)))
}

fn options(name: &str, backend: &RbdBackend, secret: &Secret) -> Result<RbdOptions> {
    let text = |key| secret::text(secret, &[key]).map_err(|why| lacking(name, backend, &why));
    let cluster = if backend.monitors.is_empty() {
        RbdCluster::Config(text(CONFIG)?.to_owned())
    } else {
        RbdCluster::Monitors(backend.monitors.join(","))
    };
    let user = text(USER)?;
    let user = user.strip_prefix("client.").unwrap_or(user);
    Ok(RbdOptions {
        namespace: backend.namespace.clone(),
        data_pool: backend.data_pool.clone(),
        object_order: backend.object_size.and_then(|size| u8::try_from(size.trailing_zeros()).ok()),
        flatten_clones: backend.flatten_clones,
        connect_timeout: CONNECT_TIMEOUT,
        ..RbdOptions::new(cluster, user, text(KEY)?, &backend.pool)
    })
}

fn lacking(name: &str, backend: &RbdBackend, what: &str) -> Error {
    let (secret, pool) = (&backend.secret_ref.name, &backend.pool);
    let message = format!(
        "store {name}, pool {pool}: Secret {secret} {what}: it belongs into Vitrine's own namespace, with {USER} and {KEY}, and with \
         {CONFIG} if the store names no monitors"
    );
    Error::new(Kind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use super::{secret::of as secret, *};

    fn backend() -> RbdBackend {
        RbdBackend {
            monitors: vec!["10.0.0.1".to_owned(), "10.0.0.2:6789".to_owned()],
            pool: "images".to_owned(),
            object_size: Some(8 << 20),
            ..RbdBackend::default()
        }
    }

    #[test]
    fn a_secret_as_ceph_csi_has_it_is_enough() {
        let made = options("s", &backend(), &secret(&[(USER, "client.glance\n"), (KEY, "AQ==\n")])).unwrap();
        assert!(made.cluster == RbdCluster::Monitors("10.0.0.1,10.0.0.2:6789".to_owned()));
        assert_eq!((made.user.as_str(), made.key.as_str(), made.object_order), ("glance", "AQ==", Some(23)));
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_else_shown() {
        let without = RbdBackend { monitors: Vec::new(), ..backend() };
        for (backend, entries, missing) in [
            (backend(), vec![(USER, "glance"), (KEY, " ")], KEY),
            (backend(), vec![(KEY, "hidden")], USER),
            (without.clone(), vec![(USER, "glance"), (KEY, "hidden")], CONFIG),
        ] {
            let error = options("s", &backend, &secret(&entries)).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(&format!("key {missing}")) && !text.contains("hidden"), "{text}");
            assert_eq!(error.kind(), Kind::Unavailable);
        }
        let entries = [(USER, "glance"), (KEY, "x"), (CONFIG, "[global]")];
        assert!(
            options("s", &without, &secret(&entries)).unwrap().cluster == RbdCluster::Config("[global]".to_owned())
        );
    }
}

//! What this agent proves with that it is one: a key that never leaves its memory, and the certificate that the operator signs for it.
//!
//! The public half stands in the node's NodeCache, which nobody else may write; the certificate is read from there too, and taken up while
//! connections go on.

use std::{
    io::Cursor,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use rcgen::KeyPair;
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::FIELD_MANAGER;
use crate::api::{DataEndpoint, NodeCache};

/// The pause after a write that failed.
const RETRY: Duration = Duration::from_secs(2);
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(12);

/// This agent's key, and the certificate for it once there is one.
#[derive(Debug)]
pub struct Identity {
    key: KeyPair,
    certified: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Identity {
    /// A new key.
    ///
    /// # Errors
    /// What the cryptography library says.
    pub fn new() -> Result<Self, rcgen::Error> {
        Ok(Self { key: KeyPair::generate()?, certified: RwLock::default() })
    }

    /// The public key, PEM.
    pub fn public_key(&self) -> String {
        self.key.public_key_pem()
    }

    /// Takes up a certificate, if it is one for this key.
    fn take_up(&self, pem: &str) -> Result<(), String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(Cursor::new(pem)).collect();
        let chain = chain.map_err(|error| format!("it is no PEM: {error:?}"))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let certified = certified.map_err(|error| error.to_string())?;
        *self.certified.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Publishes `endpoint` in the NodeCache of `node`, and takes up what is signed for it, until `stop`.
pub async fn keep(
    client: Client,
    node: String,
    identity: Arc<Identity>,
    endpoint: DataEndpoint,
    stop: CancellationToken,
) {
    let caches: Api<NodeCache> = Api::all(client);
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let mut events = Box::pin(watcher::watcher(caches.clone(), own).default_backoff());
    let (mut to_publish, mut known) = (false, None);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Apply(cache) | Event::InitApply(cache))) => {
                    to_publish = cache.status.and_then(|status| status.data).as_ref() != Some(&endpoint);
                    if known != cache.spec.certificate {
                        known = cache.spec.certificate;
                        install(&identity, known.as_deref());
                    }
                }
                Some(Ok(Event::Init | Event::InitDone | Event::Delete(_))) => {}
                Some(Err(error)) => tracing::warn!(%error, "watching this node's NodeCache broke off; trying again"),
                None => return,
            },
            () = tokio::time::sleep(RETRY), if to_publish => {}
            () = stop.cancelled() => return,
        }
        if to_publish {
            match publish(&caches, &node, &endpoint).await {
                Ok(()) => to_publish = false,
                Err(error) => tracing::warn!(error, "this node's data API could not be announced; trying again"),
            }
        }
    }
}

fn install(identity: &Identity, certificate: Option<&str>) {
    let Some(certificate) = certificate else { return };
    match identity.take_up(certificate) {
        Ok(()) => tracing::info!("took up a new certificate"),
        // Of an earlier agent on this node: the operator signs another one.
        Err(error) => tracing::debug!(error, "the certificate in this node's NodeCache is not for this agent's key"),
    }
}

async fn publish(caches: &Api<NodeCache>, node: &str, endpoint: &DataEndpoint) -> Result<(), String> {
    let status = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "NodeCache", "status": { "data": endpoint },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&status);
    match tokio::time::timeout(DEADLINE, caches.patch_status(node, &params, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API server did not answer in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateParams;

    use super::*;

    #[test]
    fn only_a_certificate_for_its_own_key_is_taken_up() {
        let (identity, other) = (Identity::new().unwrap(), KeyPair::generate().unwrap());
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let foreign = params.self_signed(&other).unwrap().pem();
        assert!(identity.take_up(&foreign).is_err() && identity.certified.read().unwrap().is_none());
        assert!(identity.take_up("nonsense").is_err());
        identity.take_up(&params.self_signed(&identity.key).unwrap().pem()).unwrap();
        assert!(identity.take_up(&foreign).is_err());
        assert!(identity.certified.read().unwrap().is_some(), "what was good goes on serving");
    }
}

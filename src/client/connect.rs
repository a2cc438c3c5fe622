//! Which cluster, as whom, and where in it: chosen as kubectl does it.

use std::{path::PathBuf, time::Duration};

use kube::{
    Api, Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use vitrine_engine::error::{Error, Kind, Result};

use crate::{
    api::{Image, ImageStore},
    kube::client,
};

/// How long connecting may take: a cluster that is not there is to be told soon.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// What a person says about it.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// A kubeconfig other than `KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it other than the current one.
    pub context: Option<String>,
    /// A namespace other than the context's.
    pub namespace: Option<String>,
    /// Whom to act as.
    pub impersonate: Option<String>,
    /// With which groups.
    pub groups: Vec<String>,
    /// A token instead of what the kubeconfig has.
    pub token: Option<String>,
    /// How long one request may take.
    pub request_timeout: Option<Duration>,
}

/// A cluster that was chosen.
#[derive(Clone)]
pub struct Cluster {
    /// To talk to it.
    pub client: Client,
    /// How that was configured.
    pub config: Config,
    /// The namespace that is meant where none is named.
    pub namespace: String,
}

impl Choice {
    /// The cluster. It is not asked for anything yet.
    ///
    /// # Errors
    /// If the kubeconfig is not there, or makes no sense.
    pub async fn open(&self) -> Result<Cluster> {
        let config = self.config().await?;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        self.with(config, &namespace)
    }

    /// The cluster of a configuration that is there, with the rest of what was said.
    ///
    /// # Errors
    /// If the configuration makes no sense.
    pub fn with(&self, mut config: Config, namespace: &str) -> Result<Cluster> {
        if let Some(token) = &self.token {
            // The type for secrets has no other way in than the one that kubeconfigs take.
            let proof = serde_json::from_value(json!({ "token": token }));
            config.auth_info = proof.map_err(|e| Error::with_source(Kind::Internal, "taking over the token", e))?;
        }
        self.act_as(&mut config.auth_info);
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.read_timeout = self.request_timeout;
        let client = client::connect_as_told(config.clone())
            .map_err(|error| Error::new(Kind::InvalidInput, error.to_string()))?;
        Ok(Cluster { client, config, namespace: namespace.to_owned() })
    }

    async fn config(&self) -> Result<Config> {
        let file = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path)
                .map_err(|e| Error::new(Kind::InvalidInput, format!("the kubeconfig cannot be used: {e}")))?,
            None => match Kubeconfig::read() {
                Ok(file) => file,
                // In a pod there is no file, and the pod's service account is meant.
                Err(error) => {
                    return Config::incluster().map_err(|_| {
                        let message =
                            format!("there is no way to a cluster ({error}): set KUBECONFIG, or give --kubeconfig");
                        Error::new(Kind::InvalidInput, message)
                    });
                }
            },
        };
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(file, &options)
            .await
            .map_err(|e| Error::new(Kind::InvalidInput, format!("the kubeconfig cannot be used: {e}")))
    }

    fn act_as(&self, proof: &mut AuthInfo) {
        if let Some(user) = &self.impersonate {
            proof.impersonate = Some(user.clone());
            proof.impersonate_groups = (!self.groups.is_empty()).then(|| self.groups.clone());
        }
    }
}

impl Cluster {
    /// The Images of the namespace that is meant.
    pub fn images(&self) -> Api<Image> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Those of all namespaces.
    pub fn all_images(&self) -> Api<Image> {
        Api::all(self.client.clone())
    }

    /// The ImageStores.
    pub fn stores(&self) -> Api<ImageStore> {
        Api::all(self.client.clone())
    }
}

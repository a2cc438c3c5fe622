//! How images' bytes are carried: flags of every verb that sends or fetches them.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueHint};
use url::Url;
use vitrine_engine::error::Result;

use crate::{
    api::Image,
    cli::cluster::duration,
    client::{
        connect::Cluster,
        data::{
            credential::Credential,
            door::{Choice, Door},
            link::Link,
        },
        site,
    },
};

/// The way to the data API, and who asks.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Data (by a forwarded port unless --data-url is given)")]
pub struct Way {
    /// Where the data API is exposed, as https://images.example:8443
    #[arg(long, value_name = "URL", env = "VITRINE_DATA_URL")]
    data_url: Option<Url>,
    /// Who signs certificates there, in PEM [default: who Vitrine publishes]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "data_url")]
    certificate_authority: Option<PathBuf>,
    /// Use a token of this service account of the namespace [default: the kubeconfig's token; if it has none, an account that is made for
    /// this one transfer and removed after it]
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// The namespace of Vitrine's own pods [default: found, or vitrine-system]
    #[arg(long, value_name = "NAME", env = "VITRINE_NAMESPACE")]
    vitrine_namespace: Option<String>,
    /// How long to wait for a node, and for the image, as 90s, 10m or 2h [default: two minutes for a node, for ever for the image]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
}

impl Way {
    /// Vitrine's namespace, if it was said.
    pub fn vitrine_namespace(&self) -> Option<&str> {
        self.vitrine_namespace.as_deref()
    }

    /// The way to the agents of the Vitrine in namespace `site`.
    pub fn choice(&self, site: String) -> Choice {
        Choice { site, url: self.data_url.clone(), authority: self.certificate_authority.clone() }
    }

    /// The words that go the same way again.
    pub fn words(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let given = [
            ("--data-url", self.data_url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned())),
            ("--certificate-authority", self.certificate_authority.as_ref().map(path)),
            ("--service-account", self.service_account.clone()),
            ("--vitrine-namespace", self.vitrine_namespace.clone()),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
        given.flatten().collect()
    }
}

/// A way to an agent, to do what `right` says with `image`.
///
/// # Errors
/// If there is no way there, or nobody to be known as.
pub async fn link_for(
    way: &Way,
    cluster: &Cluster,
    image: &Image,
    right: (&'static str, &'static str),
) -> Result<Link> {
    let site = site::namespace(cluster, way.vitrine_namespace()).await?;
    let door = Door::find(cluster, way.choice(site)).await?;
    let credential = Credential::find(cluster, way.service_account.as_deref(), image, right).await?;
    let name = image.metadata.name.as_deref().unwrap_or_default();
    Ok(Link::new(door, credential, (&cluster.namespace, name)))
}

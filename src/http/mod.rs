//! The data API: an agent's door for images' bytes, `/v1/namespaces/{namespace}/images/{name}/data`, over TLS, HTTP/1.1 and 2.
//!
//! ```text
//! connection (TLS, time-outs) ─► access (who? may they?) ─► tenant (how much at once?) ─┬► download ◄─ shelf: this node's stores
//!                                                                                    ├► upload ─► the import that waits for it
//!                                                                                    └► peer: the agent of another node
//! certificate: this agent's key, published in its NodeCache and signed by the operator
//! ```
//!
//! Who may is asked of Kubernetes, with nothing but the caller's token; whoever may not learns nothing of what there is. What is passed on to
//! another agent goes there with the caller's own token, so agents need not trust each other.
//!
//! Knows the API types, the client and the engine's stores. Must not know the agent: what it needs of it is [`Shelf`].

mod access;
mod answer;
mod certificate;
mod connection;
mod download;
mod idle;
mod images;
mod linger;
mod memo;
mod peer;
mod precondition;
mod range;
mod representation;
mod serve;
mod tenant;
mod upload;

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use vitrine_engine::store::Store;

pub use serve::{listen, serve};

use crate::api::Backend;

/// Field manager of what it writes.
const FIELD_MANAGER: &str = "vitrine-agent-data";

/// Where images are read from on this node.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// The store behind the ImageStore `name`, as far as it is there: nothing is made. `id` is the mark that must be found.
    ///
    /// # Errors
    /// What opening it says.
    async fn open(
        &self,
        name: &str,
        backend: &Backend,
        id: Option<&str>,
    ) -> vitrine_engine::error::Result<Option<Arc<dyn Store>>>;
}

/// How it serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: String,
    /// The operator's namespace.
    pub namespace: String,
    /// The address by which other agents reach this node's; `None` for the one that it listens on.
    pub host: Option<IpAddr>,
    /// How long a connection on which the other side does nothing is kept.
    pub idle: Duration,
    /// How long a store may take for one read.
    pub patience: Duration,
    /// Connections in all.
    pub connections: usize,
    /// Requests of one tenant that are answered at once.
    pub requests_per_tenant: usize,
    /// Bytes of one tenant that are read and not yet sent.
    pub bytes_per_tenant: usize,
    /// The most bytes of an image.
    pub max_size: u64,
}

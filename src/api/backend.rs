//! What stands behind an ImageStore: one struct with a member for each kind of back end, which ImageStores and orders to nodes share.
//!
//! A further kind of back end is one more member here, and one more arm where agents open stores.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::is_false;

/// How a back end's own mark looks.
pub(super) const STORE_ID_PATTERN: &str = "^[0-9a-f]{32}$";

/// What a store is: exactly one member. It stands among the fields of what has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// A folder on the agents' nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemBackend>,
}

impl Backend {
    /// Its name in spec; `None` if it is of a kind that this version does not know.
    pub fn kind(&self) -> Option<&'static str> {
        self.filesystem.as_ref().map(|_| "filesystem")
    }

    /// Whether each node has such a store for itself, so that a copy in it can be read on one node only.
    pub fn is_local(&self) -> bool {
        self.filesystem.as_ref().is_some_and(|folder| !folder.shared)
    }

    /// Whether it is one and the same from wherever it is reached.
    pub fn is_shared(&self) -> bool {
        self.kind().is_some() && !self.is_local()
    }
}

/// A folder. It cannot be changed: what is kept would be somewhere else from one moment to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemBackend {
    /// Absolute, without `.` and `..`.
    #[schemars(length(min = 2, max = 512), regex(pattern = "^(/[A-Za-z0-9._-]+)+$"))]
    #[x_kube(validation = Rule::new("!self.matches('/[.]{1,2}(/|$)')")
        .message("the path must not have . or .. in it: write it out"))]
    pub path: String,
    /// The folder is one and the same on every node, as on a network file system mounted by the nodes. If not, each node has its own,
    /// and every image is on the node that imported it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
}

impl From<FilesystemBackend> for Backend {
    fn from(folder: FilesystemBackend) -> Self {
        Self { filesystem: Some(folder) }
    }
}

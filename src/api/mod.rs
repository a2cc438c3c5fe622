//! The custom resources of group `vitrine.dev`: types, names, bounds, rules and words, and nothing that acts.
//!
//! Knows the model and Kubernetes' type definitions. Must not know a client: what is here can be tested without a cluster.

mod backend;
pub mod condition;
mod content;
mod crd;
pub mod data;
pub mod identity;
mod image;
mod node_cache;
mod reference;
mod revision;
mod schema;
mod source;
mod store;
mod task;

pub use backend::{Backend, FilesystemBackend, RbdBackend, S3Backend};
pub use content::Content;
pub use crd::{FIELD_OWNER_PREFIX, crd_file_name, crd_yaml, crds};
pub use image::{
    Attempt, Conversion, DeclaredFormat, Display, Image, ImagePhase, ImageSpec, ImageStatus, Output, Progress,
    UploadPoint,
};
pub use node_cache::{AgentInfo, DataEndpoint, Held, Listing, NodeCache, NodeCacheSpec, NodeCacheStatus, StoreReport};
pub use reference::crd_reference;
pub use revision::{Cleanup, FailureReport, Gap, Location, LocationPhase, Revision, RevisionPhase};
pub use source::{BundleKind, CaBundleRef, HttpSource, SecretRef, Source, Tls, UploadSource};
pub use store::{ImageStore, ImageStoreSpec, ImageStoreStatus, NodeReach, Orphans, StoreCapacity, VerifySchedule};
pub use task::{
    Action, CopyOrder, DeleteOrder, HIGHEST_ATTEMPT, ImageIdentity, ImageTask, ImageTaskSpec, ImageTaskStatus,
    ImportOrder, ImportResult, StoreFailure, StoreFault, StoreRef, StoreTarget, TaskFailure, TaskHttp, TaskLocation,
    TaskPhase, TaskSource, TaskUpload, VerifyOrder,
};

/// The API group of every kind here.
pub const GROUP: &str = "vitrine.dev";
/// The one version served and stored.
pub const VERSION: &str = "v1alpha1";

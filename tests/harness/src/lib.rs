//! Starts the real servers that Vitrine's tests, demo and benchmarks run against, and ends them without a trace.
//!
//! * [`cluster::ControlPlane`]: etcd, kube-apiserver and kube-controller-manager on loopback, several at once; and
//!   [`cluster::Cluster`]: one with real nodes (kubelet, containerd, kube-proxy), in a network of its own;
//! * [`ceph::CephCluster`]: a monitor, an OSD and where needed a manager on loopback, several at once; and [`ceph::Gateway`]: an S3
//!   server on one;
//! * [`http::FaultServer`] and [`http::ForwardProxy`]: an HTTP server that misbehaves on demand, and a proxy that counts;
//! * [`scope::Scope`] and [`process::Process`]: a folder and the processes started in it, which end when their owner does, even by
//!   `kill -9`;
//! * [`document`]: the commands that a document tells people to run;
//! * [`tools`]: the Kubernetes programs, built once from pinned Go modules into a cache outside the tree.
//!
//! Knows nothing of Vitrine itself: the vitrine crate depends on this one, never the other way round.

pub mod ceph;
pub mod cluster;
pub mod document;
pub mod error;
pub mod http;
pub mod network;
mod pause;
pub mod pki;
pub mod port;
pub mod process;
pub mod qemu;
pub mod scope;
pub mod tools;

pub use ceph::{CephCluster, CephOptions, Gateway};
pub use cluster::{Cluster, ControlPlane, Node};
pub use error::{Error, Result};
pub use http::{Content, Fault, FaultServer, ForwardProxy, Route};
pub use process::Process;
pub use scope::Scope;
pub use tools::Tool;

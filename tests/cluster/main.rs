//! Vitrine's programs on a real API server: etcd, kube-apiserver and kube-controller-manager on loopback, no nodes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected is to fail there"
)]

mod chart;
mod documents;
mod monitoring;
mod node;
mod operator;
mod plugin;
mod whole;

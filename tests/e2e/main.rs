//! The whole on real nodes: two kubelets with containerd, the container image, the chart installed by helm, used by kubectl.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected is to fail there"
)]

mod data;
mod first_hour;
mod install;
mod life;
mod plugin;
mod runbooks;
mod site;
mod trouble;

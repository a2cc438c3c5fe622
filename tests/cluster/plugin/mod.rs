//! `kubectl vitrine` on a real API server, with a real operator and agents.

mod desk;
mod doctor;
mod images;
mod kubelet;
mod relay;
mod stores;
mod transfers;

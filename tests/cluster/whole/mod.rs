//! The whole: the real operator and real agents on a real API server, from an Image to bytes in a store.

mod broken;
mod buckets;
mod ceph;
mod contests;
mod copies;
mod crowds;
pub mod door;
mod downloads;
mod kills;
mod life;
mod lost;
mod pools;
mod resumed;
mod several;
pub mod site;
mod traces;
mod trouble;
mod trust;
mod uploads;

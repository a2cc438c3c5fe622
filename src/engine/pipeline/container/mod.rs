//! What is around a disk, and the one way to take it off: at most one compression and one archive, in either order.
//!
//! ```text
//! layers::peel ─► [unpack] ─► audit ─► window ─► section ─► [unpack] ─► the disk's bytes
//!                              │          └ finds the disk: descriptor, names
//!                              └ sees every header and digests every member as they pass: conclude
//! ```
//!
//! A disk is a member, or several that a descriptor among them names. It is found at the archive's beginning, or out of turn by range; what the whole archive says is held against that when
//! all of it has passed. Knows names of members only; nothing is ever opened by them.

mod ahead;
mod audit;
mod bundle;
mod certificate;
mod contents;
mod docker;
mod files;
mod layers;
mod manifest;
mod ovf;
mod section;
mod stage;
mod xml;

pub use contents::{Contents, Search};
pub use layers::{Layer, Peeled, Ranges, Wants, Wrapping, layer, nested, peel};

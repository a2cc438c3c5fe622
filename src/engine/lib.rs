//! Vitrine's engine: from the bytes of a source to verified images in stores, in one pass.
//!
//! ```text
//! source ─► unpack ─► format ─► verify ─► store (one or many)
//!    └──────── pulled by pipeline::import ────────┘
//! ```
//!
//! A library that stands by itself: it knows no Kubernetes, keeps no global state, and takes hostile input for granted. Imports point
//! one way (held by `tests/structure`): `model → error → io → {source, unpack, format, verify, store} → pipeline → {cache, peer}`.
//! Modules in one pair of braces never import each other.

pub mod error;
pub mod format;
pub mod io;
pub mod model;
pub mod pipeline;
pub mod source;
pub mod store;
pub mod unpack;
pub mod verify;

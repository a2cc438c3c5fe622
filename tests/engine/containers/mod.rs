//! Disks in archives and compressions, made by the tools that people use, through import and inspection.

mod bundle;
pub mod docker;
mod extents;
mod hostile;
mod kernels;
pub mod package;
mod truth;
mod zip;

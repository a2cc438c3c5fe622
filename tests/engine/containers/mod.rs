//! Disks in archives and compressions, made by the tools that people use, through import and inspection.

mod bundle;
mod docker;
mod extents;
mod hostile;
mod kernels;
mod package;
mod truth;
mod zip;

//! Takes one layer of compression off a stream: gzip, xz, zstd, bzip2.
//!
//! Knows nothing of where the bytes come from and what they hold.

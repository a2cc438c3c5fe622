//! The vocabulary of the engine: plain values and pure rules over them.
//!
//! Knows nothing of files, networks, threads or Kubernetes, and imports nothing else of this crate.

mod digest;
mod disk;
mod extent;
mod limits;
mod object;
mod verdict;
mod verified;

pub use digest::{Digest, DigestAlgorithm, ParseDigestError};
pub use disk::{Compression, ContainerFormat, DiskFormat, ParseFormatError, Subformat};
pub use extent::{CHUNK_SIZE, Chunk, ChunkDigest, ContentManifest};
pub use limits::Limits;
pub use object::{ObjectKey, OutputFormat, Properties, StoredImage};
pub use verdict::{Inspection, Rule, Verdict, Violation};
pub use verified::{Evidence, Received, Verified};

//! What only the filesystem store promises.

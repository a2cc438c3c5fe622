//! A root filesystem in one archive, as `docker export` writes it: looked at as it passes, and kept as it is.

use super::{
    super::audit::Witness,
    tree::{Node, Tree},
};
use crate::{
    model::{Rule, Violation},
    unpack::tar::Entry,
};

/// Folders of which every root filesystem has one: Docker makes `etc` where an image has none.
const FOLDERS: &[&str] = &["etc", "usr", "bin"];

/// Looks at what passes.
pub(in crate::pipeline::container) struct RootFs {
    tree: Tree,
}

impl RootFs {
    pub fn new() -> Self {
        Self { tree: Tree::plain() }
    }
}

impl Witness for RootFs {
    fn begin(&mut self, entry: Entry) -> Result<(), Violation> {
        let name = String::from_utf8_lossy(&entry.name);
        if matches!(name.as_ref(), "manifest.json" | "oci-layout") {
            let message = "part of a container image among the files of a root filesystem: programs would read the archive as one or the other";
            return Err(Violation::new(Rule::InvalidField, "members", name, message));
        }
        self.tree.apply(&entry)
    }

    fn take(&mut self, _bytes: &[u8]) {}

    fn end(&mut self) -> Result<(), Violation> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Violation> {
        let (nodes, _) = std::mem::take(&mut self.tree).finish();
        let is_there = |name: &str| matches!(nodes.get(name.as_bytes()), Some(Node::Folder(_) | Node::Link(..)));
        if FOLDERS.iter().any(|name| is_there(name)) {
            return Ok(());
        }
        let message = "docker was declared, and the archive is neither a container image nor a root filesystem, which has folders such as \
                       etc, usr or bin: declare what it is";
        Err(Violation::new(Rule::FormatMismatch, "containerFormat", "tar", message))
    }
}

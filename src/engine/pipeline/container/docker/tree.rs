//! The tree of files that layers make, one applied on the other (OCI Image Layer Specification 1.1, "Applying Changesets").
//!
//! Knows names and what they mean to each other; never the bytes of a file, which are told by layer and number. Nothing is made on disk.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
};

use crate::{
    model::{Rule, Violation},
    unpack::tar::Entry,
};

/// Names in a tree at once. Images of whole distributions have some 200,000; each takes about 300 bytes of memory.
const MAX_NODES: usize = 300_000;
/// Bytes of all names and of all that is kept with them.
const MAX_NAMES: usize = 32 << 20;
/// Folders inside of folders: Linux takes paths of 4096 bytes, people make a few dozen.
const MAX_DEPTH: usize = 128;
/// Symbolic links on the way to one name, as in Linux.
const MAX_LINKS: usize = 40;
/// The same for all names of an image together: each costs a walk.
const MAX_ALL_LINKS: usize = 100_000;

/// Beginning of the names that remove others, and of those that only say something to aufs.
const WHITEOUT: &[u8] = b".wh.";
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Character devices that systems in containers have: major and minor numbers.
const DEVICES: &[(u32, u32)] = &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// Where the bytes of a file are: layer, and number of its entry there.
pub(super) type FileId = (u32, u32);

/// What is kept of an entry besides its name and its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub mode: u32,
    pub owner: u64,
    pub group: u64,
    pub modified: u64,
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Folder(Meta),
    /// A file; several names of one file have one identity.
    File(FileId),
    /// A symbolic link and its target.
    Link(Meta, Vec<u8>),
    /// A character device or a pipe: typeflag, and numbers.
    Special(Meta, u8, (u32, u32)),
}

/// Names in order.
pub(super) type Nodes = BTreeMap<Vec<u8>, Node>;
/// Metadata and size of each file.
pub(super) type Files = BTreeMap<FileId, (Meta, u64)>;

/// A tree. Names have no `/` at their ends, and the root has none.
#[derive(Default)]
pub(super) struct Tree {
    /// Each name with the layer that wrote it last.
    nodes: BTreeMap<Vec<u8>, (u32, Node)>,
    files: Files,
    layer: u32,
    entry: u32,
    /// What the current layer has whiteouts of.
    removed: HashSet<Vec<u8>>,
    bytes: usize,
    links: usize,
    /// Whether this is one archive, as it will be unpacked: then there are no whiteouts, and no name leads through a link.
    plain: bool,
}

impl Tree {
    /// Of one archive that is kept as it is.
    pub fn plain() -> Self {
        Self { plain: true, ..Self::default() }
    }

    /// What follows is of the next layer.
    pub fn next_layer(&mut self) {
        self.layer = self.layer.saturating_add(1);
        self.entry = 0;
        self.removed.clear();
    }

    /// Takes the next entry of the current layer.
    ///
    /// # Errors
    /// A violation if it may not be there.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Violation> {
        let id = (self.layer, self.entry);
        self.entry = self.entry.saturating_add(1);
        let (folder, name) = split(&entry.name);
        if !self.plain && name.starts_with(WHITEOUT) {
            return self.whiteout(folder, name);
        }
        let mut path = self.folder(folder, true)?.unwrap_or_default();
        push(&mut path, name);
        let meta = Meta {
            mode: entry.mode & 0o7777,
            owner: entry.owner,
            group: entry.group,
            modified: entry.modified,
            attributes: entry.attributes.clone(),
        };
        let weight = meta.attributes.iter().map(|(key, value)| key.len().saturating_add(value.len()));
        self.weigh(weight.fold(path.len().saturating_add(entry.link.len()), usize::saturating_add))?;
        let node = match entry.typeflag {
            b'5' => return self.add_folder(path, meta),
            b'0' => {
                self.files.insert(id, (meta, entry.size));
                Node::File(id)
            }
            b'1' => match self.linked(&entry.link)? {
                (target, _) if target == path => return Ok(()),
                (_, node) => node,
            },
            b'2' => Node::Link(meta, checked_target(&entry.link)?),
            b'6' => Node::Special(meta, b'6', (0, 0)),
            b'3' if DEVICES.contains(&entry.device) => Node::Special(meta, b'3', entry.device),
            other => return Err(foreign(entry, other)),
        };
        self.put(path, node)
    }

    /// The finished tree: names in order, and metadata and size of each file.
    pub fn finish(self) -> (Nodes, Files) {
        (self.nodes.into_iter().map(|(path, (_, node))| (path, node)).collect(), self.files)
    }

    fn put(&mut self, path: Vec<u8>, node: Node) -> Result<(), Violation> {
        match self.nodes.get(&path) {
            Some((layer, _)) if *layer == self.layer => return Err(twice(&path)),
            // A layer's file takes the place of the lower layers' folder and of all that is in it.
            Some((_, Node::Folder(_))) => {
                self.remove(&path);
                if self.nodes.contains_key(&path) {
                    return Err(twice(&path));
                }
            }
            _ => {}
        }
        if path.is_empty() {
            return Err(wrong_name(&path, "only a folder can be the root"));
        }
        self.nodes.insert(path, (self.layer, node));
        self.check_count()
    }

    fn add_folder(&mut self, path: Vec<u8>, meta: Meta) -> Result<(), Violation> {
        match self.nodes.get(&path) {
            Some((_, Node::Folder(_))) | None => {}
            Some((layer, _)) if *layer == self.layer => return Err(twice(&path)),
            Some(_) => {}
        }
        self.nodes.insert(path, (self.layer, Node::Folder(meta)));
        self.check_count()
    }

    /// What a hard link means: the name, without links in it, and what that is.
    fn linked(&mut self, link: &[u8]) -> Result<(Vec<u8>, Node), Violation> {
        let parts: Vec<_> = link.split(|byte| *byte == b'/').collect();
        if link.starts_with(b"/") || parts.contains(&b"..".as_slice()) {
            return Err(dangling(link, "a hard link leads out of the archive"));
        }
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty() && *part != b".").collect();
        let clean = parts.join(&b'/');
        let (folder, name) = split(&clean);
        let Some(mut path) = self.folder(folder, false)? else {
            return Err(dangling(link, "a hard link leads nowhere"));
        };
        push(&mut path, name);
        match self.nodes.get(&path) {
            Some((_, Node::Folder(_))) | None => Err(dangling(link, "a hard link must lead to a file before it")),
            Some((_, node)) => Ok((path.clone(), node.clone())),
        }
    }

    fn whiteout(&mut self, folder: &[u8], name: &[u8]) -> Result<(), Violation> {
        if name.starts_with(RESERVED) && name != OPAQUE {
            return Ok(());
        }
        let target = name.strip_prefix(WHITEOUT).unwrap_or_default();
        if target.is_empty() || target == b"." || target == b".." {
            return Err(wrong_name(name, "a whiteout of nothing"));
        }
        let Some(mut path) = self.folder(folder, false)? else { return Ok(()) };
        let mut mark = path.clone();
        push(&mut mark, name);
        self.weigh(mark.len())?;
        if !self.removed.insert(mark) {
            return Err(twice(name));
        }
        if name == OPAQUE {
            self.remove_below(&path);
        } else {
            push(&mut path, target);
            self.remove(&path);
        }
        Ok(())
    }

    /// Removes what lower layers have at `path` and below it.
    fn remove(&mut self, path: &[u8]) {
        self.remove_below(path);
        let lower = self.nodes.get(path).is_some_and(|(layer, _)| *layer < self.layer);
        if lower && below(&self.nodes, path).next().is_none() {
            self.nodes.remove(path);
        }
    }

    /// Removes what lower layers have below `path`. A folder stays if the current layer has something in it.
    fn remove_below(&mut self, path: &[u8]) {
        let (mut gone, mut kept) = (Vec::new(), Vec::new());
        for (name, (layer, node)) in below(&self.nodes, path).rev() {
            let holds = matches!(node, Node::Folder(_)) && is_below(&kept, name);
            if *layer < self.layer && !holds {
                gone.push(name.clone());
            } else {
                kept.clone_from(name);
            }
        }
        for name in gone {
            self.nodes.remove(&name);
        }
    }

    /// The folder called `path`, by its name without links. Makes what is missing if `make`, else `None`.
    fn folder(&mut self, path: &[u8], make: bool) -> Result<Option<Vec<u8>>, Violation> {
        let (mut found, mut links) = (Vec::new(), 0_usize);
        // What is still to be walked, last part first.
        let mut rest: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        while let Some(part) = rest.pop() {
            if part == b".." {
                // Above the root is the root, as for whoever runs in it.
                found.truncate(found.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let above = found.len();
            push(&mut found, &part);
            match self.nodes.get(&found) {
                Some((_, Node::Folder(_))) => {}
                Some((_, Node::Link(_, target))) if !self.plain => {
                    (links, self.links) = (links.saturating_add(1), self.links.saturating_add(1));
                    if links > MAX_LINKS || self.links > MAX_ALL_LINKS {
                        return Err(wrong_name(path, "too many symbolic links lead to it"));
                    }
                    found.truncate(if target.starts_with(b"/") { 0 } else { above });
                    rest.extend(parts(target).rev().map(<[u8]>::to_vec));
                }
                Some(_) => return Err(wrong_name(path, "what it lies in is no folder")),
                None if !make => return Ok(None),
                None => {
                    self.weigh(found.len())?;
                    let meta = Meta { mode: 0o755, ..Meta::default() };
                    self.nodes.insert(found.clone(), (self.layer, Node::Folder(meta)));
                    self.check_count()?;
                }
            }
            let depth = parts(&found).count().saturating_add(rest.len());
            if depth > MAX_DEPTH {
                return Err(wrong_name(path, "more folders inside of one another than are read"));
            }
        }
        Ok(Some(found))
    }

    /// Counts what is kept for an entry. Nothing is given back: what was replaced was read all the same.
    fn weigh(&mut self, bytes: usize) -> Result<(), Violation> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= MAX_NAMES {
            return Ok(());
        }
        let message = format!("the names in an image may have {MAX_NAMES} bytes together");
        Err(Violation::new(Rule::SizeLimit, "names", self.bytes, message))
    }

    fn check_count(&self) -> Result<(), Violation> {
        // Files whose names are gone are still known: a hard link may have kept them.
        let count = self.nodes.len().max(self.files.len());
        if count <= MAX_NODES {
            return Ok(());
        }
        let message = format!("an image of up to {MAX_NODES} files is read");
        Err(Violation::new(Rule::SizeLimit, "entries", count, message))
    }
}

/// Everything in the folder `path`, at any depth.
pub(super) fn below<'a, T>(
    nodes: &'a BTreeMap<Vec<u8>, T>,
    path: &[u8],
) -> impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a T)> + use<'a, T> {
    if path.is_empty() {
        // All but the root itself.
        return nodes.range::<[u8], _>((Bound::Excluded([].as_slice()), Bound::Unbounded));
    }
    // `0` comes after `/`.
    let (start, end) = ([path, b"/"].concat(), [path, b"0"].concat());
    nodes.range::<[u8], _>((Bound::Included(start.as_slice()), Bound::Excluded(end.as_slice())))
}

fn is_below(name: &[u8], folder: &[u8]) -> bool {
    name.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// Folder and last part of a name.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (name.get(..slash).unwrap_or_default(), name.get(slash.saturating_add(1)..).unwrap_or_default()),
        None => (&[], name),
    }
}

fn push(path: &mut Vec<u8>, part: &[u8]) {
    if !path.is_empty() && !part.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(part);
}

/// The target of a symbolic link. It may lead anywhere: whoever follows it is inside.
fn checked_target(target: &[u8]) -> Result<Vec<u8>, Violation> {
    if target.is_empty() || target.len() > 4096 || target.contains(&0) {
        return Err(dangling(target, "a symbolic link has a target of up to 4096 bytes"));
    }
    Ok(target.to_vec())
}

fn foreign(entry: &Entry, typeflag: u8) -> Violation {
    let (rule, value, message) = match typeflag {
        b'3' | b'4' => {
            let (major, minor) = entry.device;
            let message = "a device that no container needs gives whoever unpacks it a way to the host: leave it out";
            (Rule::InvalidField, format!("device {major}:{minor}"), message)
        }
        b'S' => (Rule::UnsupportedFormat, "sparse".to_owned(), "sparse files are not read: save the image again"),
        other => {
            let message = "a kind of entry that is not known";
            (Rule::InvalidField, char::from(other).escape_debug().to_string(), message)
        }
    };
    Violation::new(rule, "typeflag", value, format!("{}: {message}", shown(&entry.name)))
}

fn twice(name: &[u8]) -> Violation {
    let message = "two entries of one archive have this name: which of them is meant cannot be told";
    Violation::new(Rule::InvalidField, "name", shown(name), message)
}

fn wrong_name(name: &[u8], why: &str) -> Violation {
    Violation::new(
        Rule::InvalidField,
        "name",
        shown(name),
        format!("{why}: the archive is damaged, or hides something"),
    )
}

fn dangling(link: &[u8], why: &str) -> Violation {
    Violation::new(
        Rule::InvalidField,
        "linkname",
        shown(link),
        format!("{why}: the archive is damaged, or hides something"),
    )
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(120).flat_map(char::escape_debug).collect()
}

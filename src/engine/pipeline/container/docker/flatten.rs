//! What layers come to: the disk of a containerDisk, or one archive of all files.
//!
//! ```text
//! layers ─► tree (headers, digests) ─► plan ─► layers again ─► files, links, folders
//! ```
//! The archive is the same for the same layers: files as they stand in the layers, lowest first, each followed by its other names; then
//! links and devices, then folders, deepest first, so that nothing changes a folder after its times were set. Names of users and
//! groups are left out: they mean others elsewhere.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::{
    blob::{Shared, Weight, open, open_proved},
    index::Layer,
    tree::{FileId, Files, Meta, Node, Nodes, Tree, below},
};
use crate::{
    error::{Error, Kind, Result},
    io::{Feed, Forward, ReadAt as _},
    model::Limits,
    unpack::tar::{BLOCK, Heading, Scan, next_entry, trailing, truncated},
};

/// Entries of one layer, those included that remove others. Bounds the time that an image takes.
pub(super) const MAX_ENTRIES: u32 = 1_000_000;
/// Bytes given out at once.
const PIECE: usize = 512 << 10;

/// Reads all layers, which must be what they are said to be, and gives the tree.
///
/// # Errors
/// A violation if a layer breaks a rule, else what the archive says.
pub(super) fn read(archive: &Shared, layers: &[Layer], limits: &Limits) -> Result<Tree> {
    let (mut tree, mut weight) = (Tree::default(), Weight::default());
    for layer in layers {
        let mut input = open_proved(archive, layer, limits, weight)?;
        let mut scan = Scan::new(MAX_ENTRIES);
        while let Some(entry) = next_entry(&mut scan, &mut input)? {
            tree.apply(&entry)?;
        }
        if let Some(place) = input.finish()? {
            return Err(trailing(place).into());
        }
        weight = input.into_inner().into_weight();
        tree.next_layer();
    }
    Ok(tree)
}

/// What is to be written.
pub(super) struct Plan {
    /// The files that have names left, with these.
    files: BTreeMap<FileId, (Meta, u64, Vec<Vec<u8>>)>,
    /// What has no bytes, in the order in which it comes.
    rest: VecDeque<(Vec<u8>, Node)>,
    /// Whether to give the bytes of the files and nothing else.
    bare: bool,
}

/// Where a containerDisk has its disk.
const DISK: &[u8] = b"disk";

impl Plan {
    /// The disk, if the tree is that of a containerDisk: there is one file below `/disk`. Its name, and its size.
    pub fn of_disk(tree: Tree) -> Result<(Self, String, u64), Self> {
        let (nodes, mut files) = tree.finish();
        let inside = below(&nodes, DISK).filter(|(_, node)| !matches!(node, Node::Folder(_)));
        let inside: Vec<_> = inside.take(2).map(|(name, node)| (name.clone(), node.clone())).collect();
        if let [(name, Node::File(id))] = inside.as_slice()
            && let Some((meta, size)) = files.remove(id)
        {
            let shown = String::from_utf8_lossy(name).into_owned();
            let files = BTreeMap::from([(*id, (meta, size, vec![name.clone()]))]);
            return Ok((Self { files, rest: VecDeque::new(), bare: true }, shown, size));
        }
        Err(Self::of_all(nodes, files))
    }

    fn of_all(nodes: Nodes, mut files: Files) -> Self {
        let mut named: BTreeMap<FileId, (Meta, u64, Vec<Vec<u8>>)> = BTreeMap::new();
        let (mut links, mut folders) = (VecDeque::new(), Vec::new());
        for (path, node) in nodes {
            match node {
                Node::File(id) => match (named.get_mut(&id), files.remove(&id)) {
                    (Some((_, _, names)), _) => names.push(path),
                    (None, Some((meta, size))) => drop(named.insert(id, (meta, size, vec![path]))),
                    (None, None) => {}
                },
                Node::Folder(_) => folders.push((path, node)),
                Node::Link(..) | Node::Special(..) => links.push_back((path, node)),
            }
        }
        links.extend(folders.into_iter().rev());
        Self { files: named, rest: links, bare: false }
    }
}

/// Gives the planned bytes.
pub(super) struct Flat {
    archive: Option<Shared>,
    layers: Vec<Layer>,
    limits: Limits,
    plan: Plan,
    open: Option<Open>,
    /// Whether the zeros at the archive's end are written.
    ended: bool,
}

/// A layer that is read.
struct Open {
    number: u32,
    entry: u32,
    scan: Scan,
    input: Forward<Box<dyn Feed>>,
    /// What is still to come of a file: where it is in the layer, where it ends, and the archive's text behind it.
    file: Option<(u64, u64, Bytes)>,
}

impl Flat {
    pub fn new(archive: Shared, layers: Vec<Layer>, limits: Limits, plan: Plan) -> Self {
        Self { archive: Some(archive), layers, limits, plan, open: None, ended: false }
    }

    /// Appends a little to `output`; false at the end.
    fn step(&mut self, output: &mut BytesMut) -> Result<bool> {
        if let Some(open) = &mut self.open {
            if open.step(&mut self.plan, output)? {
                return Ok(true);
            }
            self.open = None;
        }
        // Layers of which nothing is left are not read again.
        if let Some((id, _)) = self.plan.files.first_key_value() {
            let number = id.0;
            let layer = usize::try_from(number).ok().and_then(|number| self.layers.get(number));
            let (Some(layer), Some(archive)) = (layer, &self.archive) else {
                return Err(Error::new(Kind::Internal, format!("a file of layer {number}, which there is not")));
            };
            let input = open(archive, layer, &self.limits)?;
            self.open = Some(Open { number, entry: 0, scan: Scan::new(MAX_ENTRIES), input, file: None });
            return Ok(true);
        }
        if let Some((path, node)) = self.plan.rest.pop_front() {
            put_node(output, &path, &node);
            return Ok(true);
        }
        if !self.plan.bare && !std::mem::replace(&mut self.ended, true) {
            output.extend_from_slice(&[0; BLOCK * 2]);
            return Ok(true);
        }
        Ok(false)
    }
}

impl Open {
    /// Goes on in the layer; false when nothing of it is left to be written.
    fn step(&mut self, plan: &mut Plan, output: &mut BytesMut) -> Result<bool> {
        if let Some((at, end, behind)) = &mut self.file {
            let left = usize::try_from(end.saturating_sub(*at)).unwrap_or(usize::MAX);
            let bytes = self.input.read_up_to(*at, left.min(PIECE))?;
            if bytes.is_empty() && left > 0 {
                return Err(truncated(*at, "a file of a layer").into());
            }
            output.extend_from_slice(&bytes);
            *at = at.saturating_add(bytes.len() as u64);
            if at == end {
                output.extend_from_slice(behind);
                self.file = None;
            }
            return Ok(true);
        }
        if plan.files.first_key_value().is_none_or(|(id, _)| id.0 != self.number) {
            return Ok(false);
        }
        let Some(entry) = next_entry(&mut self.scan, &mut self.input)? else {
            return Err(Error::new(Kind::Changed, "a layer has fewer files than when it was read before"));
        };
        let id = (self.number, self.entry);
        self.entry = self.entry.saturating_add(1);
        if let Some((meta, size, names)) = plan.files.remove(&id) {
            if size != entry.size {
                return Err(Error::new(Kind::Changed, "a file of a layer is not what it was before"));
            }
            let behind = if plan.bare { Bytes::new() } else { put_file(output, &meta, size, &names) };
            self.file = Some((entry.offset, entry.offset.saturating_add(size), behind));
        }
        Ok(true)
    }
}

impl Feed for Flat {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let mut output = BytesMut::new();
        while output.len() < PIECE && self.archive.is_some() {
            if !self.step(&mut output)?
                && let Some(archive) = self.archive.take()
            {
                archive.finish()?;
            }
        }
        Ok((!output.is_empty()).then(|| output.freeze()))
    }
}

/// Writes a file's header; what is given back follows its bytes: padding, and its other names.
fn put_file(output: &mut BytesMut, meta: &Meta, size: u64, names: &[Vec<u8>]) -> Bytes {
    let padding = size.next_multiple_of(BLOCK as u64).saturating_sub(size);
    let mut behind = BytesMut::zeroed(usize::try_from(padding).unwrap_or(0));
    if let Some((first, names)) = names.split_first() {
        output.extend_from_slice(&Heading { size, ..heading(first, b'0', meta) }.to_bytes());
        for name in names {
            behind.extend_from_slice(&Heading { link: first, ..heading(name, b'1', meta) }.to_bytes());
        }
    }
    behind.freeze()
}

fn put_node(output: &mut BytesMut, path: &[u8], node: &Node) {
    let bytes = match node {
        Node::Folder(meta) => {
            let path = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
            heading(&path, b'5', meta).to_bytes()
        }
        Node::Link(meta, target) => Heading { link: target, ..heading(path, b'2', meta) }.to_bytes(),
        Node::Special(meta, typeflag, device) => {
            Heading { device: *device, ..heading(path, *typeflag, meta) }.to_bytes()
        }
        // Those were written with their bytes.
        Node::File(_) => Vec::new(),
    };
    output.extend_from_slice(&bytes);
}

fn heading<'a>(path: &'a [u8], typeflag: u8, meta: &'a Meta) -> Heading<'a> {
    Heading {
        path,
        typeflag,
        size: 0,
        link: b"",
        mode: meta.mode,
        owner: meta.owner,
        group: meta.group,
        modified: meta.modified,
        device: (0, 0),
        attributes: &meta.attributes,
    }
}

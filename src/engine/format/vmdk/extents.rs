//! A disk in several files, given as one after the other: monolithicFlat, twoGbMaxExtentFlat, twoGbMaxExtentSparse, and ESXi's flat disks.
//!
//! Knows where each extent begins, in the disk and in the input; that the names in the descriptor mean these bytes is for the caller.

use bytes::Bytes;

use super::{Header, SECTOR, TableMap, read_exact};
use crate::{
    error::{Error, Kind, Result},
    format::{DiskMap, Mapping, Place, oversized},
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// How the bytes of an extent lie in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// As they are, from this byte of the file on.
    Flat(u64),
    /// In grains behind tables.
    Sparse,
    /// Nowhere: they are zeros, and there is no file.
    Zero,
}

/// An extent and its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in the guest's disk, in bytes.
    pub size: u64,
    /// How it lies in the file.
    pub kind: ExtentKind,
    /// Length of the file in bytes.
    pub length: u64,
}

/// Extents as a disk.
#[derive(Debug)]
pub(in crate::format) struct ExtentMap {
    /// Where each begins in the disk and in the input, and what it is.
    extents: Vec<(u64, u64, Extent)>,
    size: u64,
    length: u64,
    limits: Limits,
    /// The sparse extent that was resolved last.
    open: Option<(usize, TableMap)>,
}

impl ExtentMap {
    /// The disk that these extents are, whose files come one behind the other.
    ///
    /// # Errors
    /// `VirtualSizeLimit`.
    pub(in crate::format) fn new(extents: &[Extent], limits: &Limits) -> Result<Self> {
        let (mut size, mut length) = (0_u64, 0_u64);
        let mut placed = Vec::with_capacity(extents.len());
        for extent in extents {
            placed.push((size, length, *extent));
            size = size.saturating_add(extent.size);
            length = length.saturating_add(extent.length);
        }
        if size > limits.max_virtual_size {
            return Err(oversized("extent sizes", size, limits.max_virtual_size).into());
        }
        Ok(Self { extents: placed, size, length, limits: limits.clone(), open: None })
    }

    /// The tables of extent `number`, whose file begins at `base`. Those of the one before are done with.
    fn tables(&mut self, input: &mut dyn ReadAt, number: usize, base: u64, extent: Extent) -> Result<&mut TableMap> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            self.close(input)?;
            let map = open_sparse(&mut File { input, base, length: extent.length }, extent, &self.limits)?;
            self.open = Some((number, map));
        }
        let map = self.open.as_mut().map(|(_, map)| map);
        map.ok_or_else(|| Error::new(Kind::Internal, "an extent that was not opened"))
    }

    fn close(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        let Some((number, mut map)) = self.open.take() else { return Ok(()) };
        let Some((_, base, extent)) = self.extents.get(number) else { return Ok(()) };
        map.finish(&mut File { input, base: *base, length: extent.length })?;
        map.check_length(extent.length)
    }
}

/// Opens a sparse extent, which says of itself what the descriptor says of it.
fn open_sparse(file: &mut File<'_>, extent: Extent, limits: &Limits) -> Result<TableMap> {
    let head = read_exact(file, "extent header", 0, SECTOR)?;
    let header = Header::parse_extent(&head, Some(extent.length), limits);
    let header = header.map_err(|violations| match violations.into_iter().next() {
        Some(violation) => Error::from(violation),
        None => Error::new(Kind::Internal, "refused for no reason"),
    })?;
    if header.virtual_size() != extent.size {
        let message = format!("in sectors; the descriptor says that the extent has {}", extent.size / SECTOR);
        let found = header.virtual_size() / SECTOR;
        return Err(Violation::new(Rule::InvalidField, "capacity", found, message).into());
    }
    TableMap::open_extent(file, header, limits)
}

impl DiskMap for ExtentMap {
    fn format(&self) -> DiskFormat {
        DiskFormat::Vmdk
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn may_read_twice(&self) -> bool {
        // The tables of a sparse extent may stand in bytes that are read for its header.
        self.extents.iter().any(|(_, _, extent)| extent.kind == ExtentKind::Sparse)
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let number = self.extents.partition_point(|(start, ..)| *start <= guest).saturating_sub(1);
        let found = self.extents.get(number).copied().filter(|_| guest < self.size && most > 0);
        let Some((start, base, extent)) = found else {
            return Err(Error::new(Kind::Internal, format!("vmdk: resolve of {most} bytes at byte {guest}")));
        };
        let within = guest.saturating_sub(start);
        let most = most.min(extent.size.saturating_sub(within));
        match extent.kind {
            ExtentKind::Zero => Ok(Mapping { length: most, place: Place::Zero }),
            ExtentKind::Flat(skip) => {
                let host = base.saturating_add(skip).saturating_add(within);
                Ok(Mapping { length: most, place: Place::Raw { host } })
            }
            ExtentKind::Sparse => {
                let map = self.tables(input, number, base, extent)?;
                let mut mapping = map.resolve(&mut File { input, base, length: extent.length }, within, most)?;
                if let Place::Raw { host } = &mut mapping.place {
                    *host = host.saturating_add(base);
                }
                Ok(mapping)
            }
        }
    }

    fn check_length(&self, length: u64) -> Result<()> {
        if length >= self.length {
            return Ok(());
        }
        let message = format!("all extents together have {} bytes: the archive was cut off", self.length);
        Err(Violation::new(Rule::Truncated, "extents", length, message).into())
    }

    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        self.close(input)
    }
}

/// The file of one extent.
struct File<'a> {
    input: &'a mut dyn ReadAt,
    base: u64,
    length: u64,
}

impl ReadAt for File<'_> {
    fn length(&self) -> Option<u64> {
        Some(self.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.input.read_up_to(self.base.saturating_add(offset), length.min(left))
    }

    fn can_skip(&self) -> bool {
        self.input.can_skip()
    }
}

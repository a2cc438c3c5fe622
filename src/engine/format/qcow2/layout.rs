//! The serial half of writing: a place for every piece, and the tables that say where.
//!
//! The file grows in this order, so that one who reads it as a stream meets every table before its data:
//!
//! ```text
//! header  refcounts  L1 (if the size is known)  L2[0]  data of L2[0]  L2[1]  data of L2[1] …  [L1]  refcount table
//! ```
//! The header is written last, so a file that was not finished is no qcow2. Knows the format's structures; must not
//! compress or touch a file.

use bytes::{Bytes, BytesMut};

use super::{
    COMPRESSED, COPIED, HEADER_LENGTH, INCOMPATIBLE_COMPRESSION, MAGIC, MAX_L1_LENGTH, SECTOR, refcounts::Refcounts,
};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, EncodedPiece, Finish, Layout, Write},
    model::Compression,
};

/// Where the parts of one qcow2 go.
#[derive(Debug)]
pub(super) struct Qcow2Layout {
    cluster_bits: u32,
    cluster_size: u64,
    compression: Compression,
    refcounts: Refcounts,
    /// L1 entries so far.
    l1: Vec<u64>,
    /// Offset in bytes and length in entries, if reserved at the front.
    l1_reserved: Option<(u64, u64)>,
    table: Option<Table>,
    /// Where the next compressed cluster may begin, and where the room there ends, in bytes.
    packed: (u64, u64),
    /// Compressed clusters that lie next to each other in the file: where, and their bytes. One write instead of many.
    joined: Option<(u64, BytesMut)>,
    /// Everything before this guest byte is placed.
    placed: u64,
    writes: Vec<Write>,
}

/// The L2 table being filled.
#[derive(Debug)]
struct Table {
    index: u64,
    offset: u64,
    entries: Vec<u8>,
}

impl Qcow2Layout {
    /// The layout of a file whose disk has `virtual_size` bytes, if that is known.
    ///
    /// # Errors
    /// `InvalidInput` if a disk of this size needs larger clusters.
    pub(super) fn new(cluster_bits: u32, compression: Compression, virtual_size: Option<u64>) -> Result<Self> {
        let cluster_size = 1_u64.wrapping_shl(cluster_bits);
        let mut layout = Self {
            cluster_bits,
            cluster_size,
            compression,
            refcounts: Refcounts::new(cluster_size),
            l1: Vec::new(),
            l1_reserved: None,
            table: None,
            packed: (0, 0),
            joined: None,
            placed: 0,
            writes: Vec::new(),
        };
        layout.refcounts.reserve(1);
        if let Some(size) = virtual_size {
            let entries = layout.l1_entries(size)?;
            let offset = layout.refcounts.reserve(layout.clusters(entries.saturating_mul(8)));
            layout.l1_reserved = Some((offset, entries));
        }
        Ok(layout)
    }

    /// Whole clusters that `length` bytes take.
    fn clusters(&self, length: u64) -> u64 {
        length.div_ceil(self.cluster_size.max(1))
    }

    /// Guest bytes that one L2 table covers.
    fn span(&self) -> u64 {
        self.cluster_size.saturating_mul(self.cluster_size / 8)
    }

    /// L1 entries for a disk of `size` bytes; an empty disk has one as well, because readers expect a table.
    fn l1_entries(&self, size: u64) -> Result<u64> {
        let entries = size.div_ceil(self.span().max(1)).max(1);
        if entries.saturating_mul(8) <= MAX_L1_LENGTH {
            return Ok(entries);
        }
        let message = format!(
            "a qcow2 with clusters of {} bytes cannot hold a disk of {size} bytes: use larger clusters, 65536 bytes say",
            self.cluster_size
        );
        Err(Error::new(Kind::InvalidInput, message))
    }

    /// Makes the table that maps `guest` the open one.
    fn open_table(&mut self, guest: u64) -> Result<()> {
        let index = guest.checked_div(self.span()).unwrap_or(0);
        if self.table.as_ref().is_some_and(|table| table.index == index) {
            return Ok(());
        }
        self.close_table();
        // Room left before the new table stays empty: its data must lie behind it.
        self.packed = (0, 0);
        let offset = self.refcounts.reserve(1);
        let entries = usize::try_from(self.l1_entries(guest.saturating_add(1))?).unwrap_or(usize::MAX);
        self.l1.resize(entries, 0);
        if let Some(last) = self.l1.last_mut() {
            *last = offset | COPIED;
        }
        let length = usize::try_from(self.cluster_size).unwrap_or(0);
        self.table = Some(Table { index, offset, entries: vec![0; length] });
        Ok(())
    }

    fn close_table(&mut self) {
        if let Some(table) = self.table.take() {
            self.write(table.offset, table.entries.into());
        }
    }

    /// Sets the L2 entry of the cluster at `guest`, which the open table maps.
    fn map(&mut self, guest: u64, entry: u64) {
        let number = guest.wrapping_shr(self.cluster_bits).checked_rem(self.cluster_size / 8).unwrap_or(0);
        let at = usize::try_from(number.saturating_mul(8)).unwrap_or(usize::MAX);
        let slot = self.table.as_mut().and_then(|table| table.entries.get_mut(at..)?.first_chunk_mut());
        if let Some(slot) = slot {
            *slot = entry.to_be_bytes();
        }
    }

    fn place_plain(&mut self, piece: &EncodedPiece) -> Result<()> {
        let (mut guest, mut bytes) = (piece.guest, piece.bytes.clone());
        while !bytes.is_empty() {
            self.open_table(guest)?;
            let left_in_table = self.span().saturating_sub(guest.checked_rem(self.span()).unwrap_or(0));
            let here = usize::try_from(left_in_table).unwrap_or(usize::MAX).min(bytes.len());
            let part = bytes.split_to(here);
            let clusters = self.clusters(here as u64);
            let host = self.refcounts.reserve(clusters);
            for number in 0..clusters {
                let ahead = number.saturating_mul(self.cluster_size);
                self.map(guest.saturating_add(ahead), host.saturating_add(ahead) | COPIED);
            }
            self.write(host, part);
            guest = guest.saturating_add(left_in_table);
        }
        Ok(())
    }

    fn place_packed(&mut self, piece: &EncodedPiece) -> Result<()> {
        self.open_table(piece.guest)?;
        let length = piece.bytes.len() as u64;
        let host = self.room_for(length);
        // "Compressed Clusters Descriptor": the number of sectors after the first that the bytes touch, above bit x.
        let last = host.saturating_add(length).saturating_sub(1);
        let further = (last / SECTOR).saturating_sub(host / SECTOR);
        let x = 70_u32.saturating_sub(self.cluster_bits);
        self.map(piece.guest, COMPRESSED | further.wrapping_shl(x) | host);
        self.join(host, &piece.bytes);
        Ok(())
    }

    /// A place for `length` packed bytes, less than a cluster: behind the ones before, byte by byte, where they end in the last
    /// cluster of the file or leave enough room; else in a new cluster. Counts the clusters touched.
    fn room_for(&mut self, length: u64) -> u64 {
        let (at, end) = self.packed;
        let fits = at.saturating_add(length) <= end;
        let grows = end == self.refcounts.end();
        let shared = at < end && (fits || grows) && self.refcounts.share(at);
        let start = if shared { at } else { self.refcounts.reserve(1) };
        let room = match (shared, fits) {
            (true, true) => end,
            (true, false) => self.refcounts.reserve(1).saturating_add(self.cluster_size),
            (false, _) => start.saturating_add(self.cluster_size),
        };
        self.packed = (start.saturating_add(length), room);
        start
    }

    /// Writes packed bytes together with those right before them.
    fn join(&mut self, offset: u64, bytes: &Bytes) {
        match &mut self.joined {
            Some((start, joined)) if start.saturating_add(joined.len() as u64) == offset => {
                joined.extend_from_slice(bytes);
            }
            _ => {
                self.flush();
                self.joined = Some((offset, BytesMut::from(bytes.as_ref())));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((offset, bytes)) = self.joined.take() {
            self.writes.push(Write { offset, bytes: bytes.freeze() });
        }
    }

    fn write(&mut self, offset: u64, bytes: Bytes) {
        self.flush();
        self.writes.push(Write { offset, bytes });
    }

    fn check_order(&mut self, piece: &EncodedPiece) -> Result<()> {
        let aligned = piece.guest.is_multiple_of(self.cluster_size);
        let fits = !piece.packed || (piece.bytes.len() as u64) < self.cluster_size;
        if piece.guest < self.placed || !aligned || !fits {
            let message = format!("qcow2: a piece at {:#x} comes after {:#x}", piece.guest, self.placed);
            return Err(Error::new(Kind::Internal, message));
        }
        let length = if piece.packed { 1 } else { piece.bytes.len() as u64 };
        let end = piece.guest.saturating_add(self.clusters(length).saturating_mul(self.cluster_size));
        self.placed = end;
        Ok(())
    }

    /// Writes the L1 table; its offset in bytes and length in entries.
    fn finish_l1(&mut self, virtual_size: u64) -> Result<(u64, u64)> {
        let needed = self.l1_entries(virtual_size)?;
        let (offset, entries) = match self.l1_reserved {
            Some((offset, reserved)) if needed <= reserved => (offset, reserved),
            Some((_, reserved)) => {
                let message = format!("qcow2: {needed} L1 entries where {reserved} were announced");
                return Err(Error::new(Kind::Internal, message));
            }
            None => (self.refcounts.reserve(self.clusters(needed.saturating_mul(8))), needed),
        };
        self.l1.resize(usize::try_from(entries).unwrap_or(usize::MAX), 0);
        let bytes: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write(offset, bytes.into());
        Ok((offset, entries))
    }

    fn header(&self, virtual_size: u64, l1: (u64, u64), refcounts: (u64, u64)) -> Bytes {
        let zstd = self.compression == Compression::Zstd;
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
        let mut header = Vec::with_capacity(HEADER_LENGTH as usize);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&3_u32.to_be_bytes());
        header.extend_from_slice(&[0; 12]); // no backing file
        header.extend_from_slice(&self.cluster_bits.to_be_bytes());
        header.extend_from_slice(&virtual_size.to_be_bytes());
        header.extend_from_slice(&[0; 4]); // no encryption
        header.extend_from_slice(&narrow(l1.1));
        header.extend_from_slice(&l1.0.to_be_bytes());
        header.extend_from_slice(&refcounts.0.to_be_bytes());
        header.extend_from_slice(&narrow(refcounts.1));
        header.extend_from_slice(&[0; 12]); // no snapshots
        header.extend_from_slice(&(if zstd { INCOMPATIBLE_COMPRESSION } else { 0 }).to_be_bytes());
        header.extend_from_slice(&[0; 16]); // no compatible and no autoclear features
        header.extend_from_slice(&4_u32.to_be_bytes()); // refcount_order: 16 bits
        header.extend_from_slice(&HEADER_LENGTH.to_be_bytes());
        header.push(u8::from(zstd));
        header.extend_from_slice(&[0; 15]); // padding and the end of the header extensions
        header.into()
    }
}

impl Layout for Qcow2Layout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        for piece in &chunk.pieces {
            self.check_order(piece)?;
            if piece.packed { self.place_packed(piece) } else { self.place_plain(piece) }?;
        }
        self.flush();
        self.refcounts.settle(&mut self.writes);
        Ok(std::mem::take(&mut self.writes))
    }

    /// The virtual size in the file is a multiple of 512 bytes, as all its readers take it to be.
    fn finish(mut self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        if self.placed.saturating_sub(self.cluster_size) >= virtual_size && self.placed > 0 {
            let message = format!("qcow2: data up to {:#x} on a disk of {virtual_size:#x} bytes", self.placed);
            return Err(Error::new(Kind::Internal, message));
        }
        let virtual_size = virtual_size.checked_next_multiple_of(SECTOR).unwrap_or(virtual_size);
        self.close_table();
        let l1 = self.finish_l1(virtual_size)?;
        let refcounts = self.refcounts.finish(&mut self.writes)?;
        let header = self.header(virtual_size, l1, refcounts);
        self.write(0, header);
        Ok(Finish { writes: std::mem::take(&mut self.writes), length: self.refcounts.end() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(guest: u64, length: usize, packed: bool) -> EncodedPiece {
        EncodedPiece { guest, bytes: vec![1; length].into(), packed }
    }

    fn place(layout: &mut Qcow2Layout, pieces: Vec<EncodedPiece>) -> Vec<(u64, usize)> {
        let writes = layout.place(EncodedChunk { index: 0, pieces }).unwrap();
        writes.iter().map(|w| (w.offset, w.bytes.len())).collect()
    }

    const CLUSTER: u64 = 65536;

    #[test]
    fn packed_clusters_lie_byte_by_byte_and_plain_ones_on_clusters() {
        let mut layout = Qcow2Layout::new(16, Compression::Zlib, Some(1 << 30)).unwrap();
        // 0: header, 1: refcounts, 2: L1, 3: L2, 4: data.
        let pieces = vec![
            piece(0, 40_000, true),
            piece(CLUSTER, 40_000, true),
            piece(2 * CLUSTER, 2 * 65536, false),
            piece(4 * CLUSTER, 40_000, true),
            piece(5 * CLUSTER, 60_000, true),
        ];
        assert_eq!(
            place(&mut layout, pieces),
            [(4 * CLUSTER, 80_000), (6 * CLUSTER, 131_072), (4 * CLUSTER + 80_000, 40_000), (8 * CLUSTER, 60_000)]
        );
    }

    #[test]
    fn the_header_comes_last_and_tables_before_data() {
        let mut layout = Box::new(Qcow2Layout::new(16, Compression::Zlib, None).unwrap());
        let first = place(&mut layout, vec![piece(0, 65536, false)]);
        assert_eq!(first, [(3 * CLUSTER, 65536)]);
        let second = place(&mut layout, vec![piece(512 << 20, 65536, false)]);
        assert_eq!(second, [(2 * CLUSTER, 65536), (5 * CLUSTER, 65536)]);
        let finish = layout.finish((512 << 20) + 1).unwrap();
        assert_eq!(finish.writes.first().unwrap().offset, 4 * CLUSTER);
        assert_eq!(finish.writes.last().unwrap().offset, 0);
        assert_eq!(finish.length, 8 * CLUSTER);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let kind = |layout: Result<Qcow2Layout>| layout.map(|_| ()).unwrap_err().kind();
        assert_eq!(kind(Qcow2Layout::new(9, Compression::Zlib, Some(1 << 40))), Kind::InvalidInput);
        let mut layout = Qcow2Layout::new(16, Compression::Zlib, None).unwrap();
        place(&mut layout, vec![piece(CLUSTER, 10, false)]);
        let back = EncodedChunk { index: 0, pieces: vec![piece(0, 10, false)] };
        assert_eq!(layout.place(back).unwrap_err().kind(), Kind::Internal);
        assert_eq!(Box::new(layout).finish(CLUSTER).unwrap_err().kind(), Kind::Internal);
    }
}

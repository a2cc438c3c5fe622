//! Unpacking and packing of compressed grains, each with its marker before it.
//!
//! Knows zlib streams (RFC 1950) and markers; must not know where a grain lies. Contexts are kept per thread: making one costs
//! as much as a small grain.

use std::cell::RefCell;

use libdeflater::{CompressionLvl, Compressor, DecompressionError, Decompressor};

use super::{MARKER_LENGTH, SECTOR};
use crate::{
    error::{Error, Kind, Result},
    format::{
        Codec,
        fields::{le_u32, le_u64},
    },
    model::{Rule, Violation},
};

/// libdeflate's level. Of the Debian disk of the tests, in grains of 64 KiB: level 1 makes 42.3 % of the size, level 3 40.0 %, level 6
/// 39.1 %; zlib's level 6, with which qemu-img deflates grains, 39.5 %. Level 3 is the fastest that comes that close.
const LEVEL: i32 = 3;

thread_local! {
    static INFLATE: RefCell<Decompressor> = RefCell::new(Decompressor::new());
    static DEFLATE: RefCell<Compressor> =
        RefCell::new(Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default()));
}

/// One compressed grain; what is unpacked begins with its marker.
#[derive(Debug)]
pub(super) struct Grain {
    /// Where the guest has it, in sectors.
    pub(super) lba: u64,
    /// How many bytes there are for it in the file, its marker included.
    pub(super) room: u32,
    /// How many bytes must come out: all of the grain, or those inside the disk, as QEMU writes the last one.
    pub(super) least: u32,
}

impl Grain {
    fn refuse(&self, rule: Rule, value: impl std::fmt::Display, message: &str) -> Error {
        Violation::new(rule, format!("grain(lba {:#x})", self.lba), value, message).into()
    }
}

impl Codec for Grain {
    fn unpack(&self, input: &[u8], output: &mut [u8]) -> Result<()> {
        let whole = usize::try_from(self.room).is_ok_and(|room| input.len() >= room);
        let ends = || {
            let message = "the file ends inside the grain: it was cut off; fetch it again";
            self.refuse(Rule::Truncated, format!("{} bytes", input.len()), message)
        };
        let (Some(lba), Some(length)) = (le_u64(input, 0), le_u32(input, 8)) else { return Err(ends()) };
        if lba != self.lba || length == 0 {
            let message =
                "the table names a grain there, and its marker is of another one: the image is damaged; fetch it again";
            return Err(self.refuse(Rule::InvalidField, format!("lba {lba:#x}, {length} bytes"), message));
        }
        let packed =
            usize::try_from(length).ok().zip(usize::try_from(MARKER_LENGTH).ok()).and_then(|(length, start)| {
                let end = start.checked_add(length)?;
                input.get(start..end)
            });
        let Some(packed) = packed else {
            let message = "it reaches into the grain behind it: no writer does that";
            return Err(if whole {
                self.refuse(Rule::TableOverlap, format!("{length} bytes"), message)
            } else {
                ends()
            });
        };
        let damaged = |problem: String| {
            let message = "the image is damaged: fetch it again, or look at it with `qemu-img check`";
            self.refuse(Rule::CompressedCluster, problem, message)
        };
        match INFLATE.with_borrow_mut(|inflate| inflate.zlib_decompress(packed, output)) {
            Ok(got) if got == output.len() || u32::try_from(got).is_ok_and(|got| got >= self.least) => {
                output.get_mut(got..).unwrap_or_default().fill(0);
                Ok(())
            }
            Ok(got) => Err(damaged(format!("zlib: unpacks to {got} bytes instead of {}", output.len()))),
            Err(DecompressionError::InsufficientSpace) => {
                Err(damaged(format!("zlib: unpacks to more than {} bytes", output.len())))
            }
            Err(DecompressionError::BadData) => Err(damaged("zlib: no complete stream".to_owned())),
        }
    }
}

/// Appends the grain at `lba` to `output`: marker, compressed bytes, and zeros up to the end of a sector.
///
/// # Errors
/// `Internal`, if it does not fit where it always fits.
pub(super) fn pack(lba: u64, grain: &[u8], output: &mut Vec<u8>) -> Result<()> {
    let misfit = || Error::new(Kind::Internal, format!("vmdk: the grain at {lba:#x} could not be compressed"));
    let start = output.len();
    let marker = usize::try_from(MARKER_LENGTH).unwrap_or(0);
    let data = start.saturating_add(marker);
    DEFLATE.with_borrow_mut(|deflate| {
        output.resize(data.saturating_add(deflate.zlib_compress_bound(grain.len())), 0);
        let room = output.get_mut(data..).ok_or_else(misfit)?;
        let length = deflate.zlib_compress(grain, room).map_err(|_| misfit())?;
        let size = u32::try_from(length).map_err(|_| misfit())?;
        let head = [lba.to_le_bytes().as_slice(), &size.to_le_bytes()].concat();
        output.get_mut(start..data).ok_or_else(misfit)?.copy_from_slice(&head);
        let sector = usize::try_from(SECTOR).unwrap_or(1);
        output.truncate(data.saturating_add(length));
        // Whole sectors, counted from the grain's own start.
        let whole = output.len().saturating_sub(start).next_multiple_of(sector);
        output.resize(start.saturating_add(whole), 0);
        Ok(())
    })
}

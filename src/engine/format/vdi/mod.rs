//! VDI, dynamic and static, version 1.1 (VirtualBox, src/VBox/Storage/VDICore.h, whose names of fields stand in messages without
//! their prefixes; as strict as qemu, block/vdi.c, where the two differ).
//!
//! ```text
//! header (which file it is) ─► map (all of the block map, in runs)
//! encode (blocks of one chunk) ─► layout (places, block map, header)
//! ```
//! A disk that needs a parent is refused.

mod encode;
mod header;
mod layout;
mod map;

pub(super) use encode::VdiEncoder;
pub(super) use map::VdiMap;

/// The signature, behind 64 bytes of text.
const SIGNATURE: u32 = 0xbeda_107f;
/// The version there is, 1.1. Version 0 had a header of its own and is of 2004.
const VERSION: u32 = 0x0001_0001;
/// Image type: blocks are allocated when they are written.
const TYPE_DYNAMIC: u32 = 1;
/// Image type: every block is allocated.
const TYPE_STATIC: u32 = 2;
/// Image type: a disk and what takes it back to an earlier state.
const TYPE_UNDO: u32 = 3;
/// Image type: what differs from a parent.
const TYPE_DIFFERENCING: u32 = 4;
/// Entry of the block map: never written, reads as zeros.
const FREE: u32 = u32::MAX;
/// Entry of the block map: discarded, reads as zeros.
const DISCARDED: u32 = u32::MAX - 1;
/// The unit of offsets, in bytes.
const SECTOR: u64 = 512;
/// The usual block, in bytes, and the only one that qemu reads.
const BLOCK: u64 = 1 << 20;

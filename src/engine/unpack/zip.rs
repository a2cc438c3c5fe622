//! A zip archive (PKWARE's APPNOTE.TXT, version 6.3), read from its beginning to its end: one file, or several as a tar archive of
//! the same files.
//!
//! What stands before a file is believed only until the central directory has come, which must say the same: unpackers that begin at
//! the end see what we saw. That directory is read beforehand as well where there are several files, because a file's length may stand
//! behind it.

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::{
    codec::{Codec, Fault, Step},
    tar::{BLOCK, Heading},
};
use crate::model::{Rule, Violation};

mod listing;
mod record;

pub use listing::{Listing, list};

use record::{Central, Entry, Local, descriptor_length, differs};

pub(super) use record::{LOCAL, SPANNED};

/// Files and folders. Each costs memory.
const MAX_ENTRIES: usize = 1024;

/// The value by which an archive of several files is refused where one is expected.
pub const SEVERAL: &str = "several";

/// Decodes an archive.
pub(in crate::unpack) struct Zip {
    state: State,
    held: Vec<u8>,
    /// Bytes before those held.
    at: u64,
    entries: Vec<Entry>,
    /// What is measured of the entry in hand.
    entry: Option<(Entry, Crc)>,
    inflate: Option<Box<Decompress>>,
    central: Central,
    files: usize,
    /// What the directory says, where several files are wanted.
    listing: Option<Listing>,
    /// Length of the file in hand, as it was written into its header.
    announced: u64,
    /// What is to be given out before anything else.
    pending: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a local header or the central directory.
    Record,
    /// In an entry's data.
    Data,
    /// After data whose length was not told before it.
    Descriptor,
    Done,
}

impl Zip {
    /// Of an archive with one file, or of all those in `listing`.
    pub fn new(listing: Option<Listing>) -> Self {
        Self {
            state: State::Record,
            held: Vec::new(),
            at: 0,
            entries: Vec::new(),
            entry: None,
            inflate: None,
            central: Central::default(),
            files: 0,
            listing,
            announced: 0,
            pending: Vec::new(),
        }
    }

    /// Pulls until `needed` bytes are held. False if they have not come yet.
    fn fill(&mut self, rest: &mut &[u8], needed: usize) -> bool {
        let wanted = needed.saturating_sub(self.held.len());
        let (part, behind) = rest.split_at(wanted.min(rest.len()));
        self.held.extend_from_slice(part);
        *rest = behind;
        self.held.len() >= needed
    }

    fn drop_held(&mut self, length: usize) {
        let length = length.min(self.held.len());
        self.held.drain(..length);
        self.at = self.at.saturating_add(length as u64);
    }

    /// A header of any kind. False if it has not come whole.
    fn record(&mut self, rest: &mut &[u8]) -> Result<bool, Fault> {
        if !self.fill(rest, 4) {
            return Ok(false);
        }
        if self.held.starts_with(&SPANNED) {
            return Err(refuse(
                Rule::UnsupportedFormat,
                "disk number",
                "split",
                "an archive in several parts is not put together",
            ));
        }
        let (fixed, is_local) = (record::fixed_length(&self.held)?, self.held.starts_with(&LOCAL));
        if !self.fill(rest, fixed) {
            return Ok(false);
        }
        let length = record::whole_length(&self.held)?;
        if !self.fill(rest, length) {
            return Ok(false);
        }
        if is_local {
            let local = Local::parse(&self.held, self.at)?;
            self.drop_held(length);
            self.begin(local)?;
        } else {
            let done = self.central.take(&self.held, self.at, &self.entries)?;
            self.drop_held(length);
            if done {
                self.state = State::Done;
                self.pending.resize(if self.listing.is_some() { BLOCK * 2 } else { 0 }, 0);
            }
        }
        Ok(true)
    }

    fn begin(&mut self, local: Local) -> Result<(), Fault> {
        if self.central.begun() || self.entries.len() >= MAX_ENTRIES {
            return Err("a file stands where none may be".into());
        }
        if !local.entry.folder {
            self.files = self.files.saturating_add(1);
        }
        match &self.listing {
            Some(listing) if !local.entry.folder => {
                let size =
                    if local.entry.described { listing.size(local.entry.offset) } else { Some(local.entry.size()) };
                self.announced = size.ok_or_else(|| differs("a file that is not there"))?;
                self.pending = Heading::file(local.entry.name(), self.announced).to_bytes();
            }
            None if self.files > 1 => {
                let message = "the archive holds several files, and which of them is the disk shows only at its end: use a tar archive";
                return Err(refuse(Rule::UnsupportedFormat, "members", SEVERAL, message));
            }
            _ => {}
        }
        self.inflate = local.deflated.then(|| Box::new(Decompress::new(false)));
        self.entry = Some((local.entry, Crc::new()));
        self.state = State::Data;
        Ok(())
    }

    /// Moves data. False if there is nothing to be done before more comes, or more has room.
    fn data(&mut self, rest: &mut &[u8], output: &mut Vec<u8>) -> Result<bool, Fault> {
        let Some((entry, crc)) = &mut self.entry else { return Err("data of no file".into()) };
        let before = output.len();
        let (used, ended) = if let Some(inflate) = &mut self.inflate {
            let from = inflate.total_in();
            let status = inflate.decompress_vec(rest, output, FlushDecompress::None).map_err(|e| e.to_string())?;
            let used = usize::try_from(inflate.total_in().saturating_sub(from)).unwrap_or(usize::MAX);
            (used, status == Status::StreamEnd)
        } else {
            let left = entry.packed.saturating_sub(entry.seen_packed);
            let room = output.capacity().saturating_sub(output.len()).min(rest.len());
            let now = room.min(usize::try_from(left).unwrap_or(usize::MAX));
            output.extend_from_slice(rest.get(..now).unwrap_or_default());
            (now, now as u64 == left)
        };
        *rest = rest.get(used..).unwrap_or_default();
        self.at = self.at.saturating_add(used as u64);
        let made = output.get(before..).unwrap_or_default();
        crc.update(made);
        entry.seen_packed = entry.seen_packed.saturating_add(used as u64);
        entry.seen_size = entry.seen_size.saturating_add(made.len() as u64);
        if entry.folder && entry.seen_size > 0 {
            return Err("a folder in it has data".into());
        }
        if !ended {
            return Ok(used > 0 || !made.is_empty());
        }
        entry.seen_crc = crc.sum();
        if entry.described {
            self.state = State::Descriptor;
        } else {
            self.finish_entry()?;
        }
        Ok(true)
    }

    fn finish_entry(&mut self) -> Result<(), Fault> {
        if let Some((entry, _)) = self.entry.take() {
            entry.check()?;
            if self.listing.is_some() && !entry.folder {
                if entry.seen_size != self.announced {
                    return Err(differs("another length of a file"));
                }
                let padding = entry.seen_size.next_multiple_of(BLOCK as u64).saturating_sub(entry.seen_size);
                self.pending.resize(usize::try_from(padding).unwrap_or(0), 0);
            }
            self.entries.push(entry);
        }
        self.state = State::Record;
        Ok(())
    }

    /// Gives out what is pending. False if there is no room for all of it.
    fn flush(&mut self, output: &mut Vec<u8>) -> bool {
        let room = output.capacity().saturating_sub(output.len()).min(self.pending.len());
        output.extend(self.pending.drain(..room));
        self.pending.is_empty()
    }

    fn descriptor(&mut self, rest: &mut &[u8]) -> Result<bool, Fault> {
        // The longest form and the signature after it. More than that follows in every archive.
        if !self.fill(rest, 28) {
            return Ok(false);
        }
        let Some((entry, _)) = &mut self.entry else { return Err("a descriptor of no file".into()) };
        let length = descriptor_length(&self.held, entry)?;
        entry.settle();
        self.drop_held(length);
        self.finish_entry()?;
        Ok(true)
    }
}

impl Codec for Zip {
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, _last: bool) -> Result<Step, Fault> {
        let mut rest = input;
        loop {
            if !self.flush(output) {
                return Ok(Step { read: input.len().saturating_sub(rest.len()), ended: false });
            }
            let on = match self.state {
                State::Record => self.record(&mut rest)?,
                State::Data => self.data(&mut rest, output)?,
                State::Descriptor => self.descriptor(&mut rest)?,
                State::Done => false,
            };
            let ended = self.state == State::Done && self.pending.is_empty();
            if ended && self.files == 0 {
                return Err(refuse(Rule::NotADisk, "members", 0, "the archive holds no file that could be a disk"));
            }
            if (!on && self.pending.is_empty()) || ended {
                return Ok(Step { read: input.len().saturating_sub(rest.len()), ended });
            }
        }
    }
}

fn refuse(rule: Rule, field: &str, value: impl std::fmt::Display, message: &str) -> Fault {
    Fault::Refused(Violation::new(rule, field, value, message))
}

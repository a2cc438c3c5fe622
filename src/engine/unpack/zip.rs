//! A zip archive with one file in it (PKWARE's APPNOTE.TXT, version 6.3), read from its beginning to its end.
//!
//! What stands before the file is believed only until the central directory has come, which must say the same: unpackers that begin at
//! the end see what we saw.

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::codec::{Codec, Fault, Step};
use crate::model::{Rule, Violation};

mod record;

use record::{Central, Entry, Local, descriptor_length};

pub(super) use record::{LOCAL, SPANNED};

/// Folders beside the file. They are not needed, and each costs memory.
const MAX_ENTRIES: usize = 64;

/// Decodes an archive.
pub(super) struct Zip {
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
    pub fn new() -> Self {
        Self {
            state: State::Record,
            held: Vec::new(),
            at: 0,
            entries: Vec::new(),
            entry: None,
            inflate: None,
            central: Central::default(),
            files: 0,
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
        if self.files > 1 {
            let message = "the archive holds several files, and which of them is the disk shows only at its end: use a tar archive";
            return Err(refuse(Rule::UnsupportedFormat, "members", "several", message));
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
            self.entries.push(entry);
        }
        self.state = State::Record;
        Ok(())
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
            let on = match self.state {
                State::Record => self.record(&mut rest)?,
                State::Data => self.data(&mut rest, output)?,
                State::Descriptor => self.descriptor(&mut rest)?,
                State::Done => false,
            };
            let ended = self.state == State::Done;
            if ended && self.files == 0 {
                return Err(refuse(Rule::NotADisk, "members", 0, "the archive holds no file that could be a disk"));
            }
            if !on || ended {
                return Ok(Step { read: input.len().saturating_sub(rest.len()), ended });
            }
        }
    }
}

fn refuse(rule: Rule, field: &str, value: impl std::fmt::Display, message: &str) -> Fault {
    Fault::Refused(Violation::new(rule, field, value, message))
}

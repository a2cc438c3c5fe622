//! Goes from header to header, whoever reads them.

use super::{
    BLOCK, Entry,
    header::{Header, has_magic},
    pax::Extension,
};
use crate::model::{Rule, Violation};

/// Headers in an archive, extended ones included. An appliance has a handful of members; each header may cost a request to a server.
const MAX_HEADERS: u32 = 1024;

/// Length of an extended header, in bytes: many times the longest path that an operating system takes.
const MAX_EXTENSION: u64 = 64 << 10;

/// Whether `head`, the beginning of a stream, is that of an archive.
pub fn is_tar(head: &[u8]) -> bool {
    has_magic(head)
}

/// What a header is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `length` bytes follow, at `Scan::at`, that belong to the next header and are to be given to `Scan::extension`.
    Extension {
        /// In bytes, without padding.
        length: usize,
    },
    /// A file, or another thing with a name.
    Entry(Entry),
    /// The first of the two blocks of zeros that end an archive.
    Zeros,
    /// The second: nothing but zeros may follow.
    End,
}

/// Where in an archive one is.
#[derive(Clone, Debug)]
pub struct Scan {
    at: u64,
    headers: u32,
    max_headers: u32,
    zeros: bool,
    /// Typeflag of the extended header whose body is awaited.
    awaited: Option<(u8, u64)>,
    extension: Extension,
}

impl Default for Scan {
    fn default() -> Self {
        Self::new(MAX_HEADERS)
    }
}

impl Scan {
    /// At the beginning of an archive of up to this many headers.
    pub fn new(max_headers: u32) -> Self {
        Self { at: 0, headers: 0, max_headers, zeros: false, awaited: None, extension: Extension::default() }
    }

    /// Where the next header, or the body that was announced, stands.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Takes the block at `at`.
    ///
    /// # Errors
    /// A violation if it may not stand there.
    pub fn header(&mut self, block: &[u8]) -> Result<Item, Violation> {
        let at = self.at;
        self.at = at.saturating_add(BLOCK as u64);
        if block.iter().all(|byte| *byte == 0) {
            return Ok(if std::mem::replace(&mut self.zeros, true) { Item::End } else { Item::Zeros });
        }
        if self.zeros {
            return Err(trailing(at));
        }
        self.headers = self.headers.saturating_add(1);
        if self.headers > self.max_headers {
            let message = format!("an archive of up to {} headers is read: put fewer files into it", self.max_headers);
            return Err(Violation::new(Rule::SizeLimit, "headers", self.headers, message));
        }
        let header = Header::parse(block, at)?;
        match header.typeflag {
            b'x' | b'g' | b'L' | b'K' => self.await_extension(&header),
            _ => self.entry(header).map(Item::Entry),
        }
    }

    /// Takes the body of the extended header that came last.
    ///
    /// # Errors
    /// A violation if it is not what it should be.
    pub fn extension(&mut self, body: &[u8]) -> Result<(), Violation> {
        let Some((typeflag, size)) = self.awaited.take() else { return Ok(()) };
        self.at = self.at.saturating_add(padded(size));
        match typeflag {
            b'x' => self.extension.read(body),
            // What holds for all members can be neither a name nor a size; it is read to be refused if it says that they are sparse.
            b'g' => Extension::default().read(body),
            b'L' => {
                self.extension.path = Some(body.split(|b| *b == 0).next().unwrap_or_default().to_vec());
                Ok(())
            }
            _ => {
                self.extension.link = Some(body.split(|b| *b == 0).next().unwrap_or_default().to_vec());
                Ok(())
            }
        }
    }

    fn await_extension(&mut self, header: &Header) -> Result<Item, Violation> {
        let length = usize::try_from(header.size).ok().filter(|_| header.size <= MAX_EXTENSION).ok_or_else(|| {
            let message = format!("an extended header of up to {MAX_EXTENSION} bytes is read");
            Violation::new(Rule::SizeLimit, "extended header size", header.size, message)
        })?;
        self.awaited = Some((header.typeflag, header.size));
        Ok(Item::Extension { length })
    }

    fn entry(&mut self, header: Header) -> Result<Entry, Violation> {
        let extension = std::mem::take(&mut self.extension);
        let raw = extension.path.unwrap_or(header.name);
        let (name, trailing_slash) = clean_name(&raw)?;
        // Before typeflags there were, a folder had a name with a slash at its end.
        let typeflag = match header.typeflag {
            b'0' | b'7' | 0 if trailing_slash => b'5',
            b'7' | 0 => b'0',
            other => other,
        };
        // Nothing follows the header of what has no bytes, whatever it says.
        let empty = matches!(typeflag, b'1'..=b'6');
        let size = if empty { 0 } else { extension.size.unwrap_or(header.size) };
        let offset = self.at;
        self.at = offset.checked_add(padded(size)).filter(|_| size < u64::MAX / 2).ok_or_else(|| {
            let message = format!("{} is larger than anything can be", shown(&name));
            Violation::new(Rule::InvalidField, "size", size, message)
        })?;
        Ok(Entry {
            name,
            typeflag,
            offset,
            size,
            link: extension.link.unwrap_or(header.link),
            mode: header.mode,
            owner: extension.owner.unwrap_or(header.owner),
            group: extension.group.unwrap_or(header.group),
            modified: extension.modified.unwrap_or(header.modified),
            device: header.device,
            attributes: extension.attributes,
        })
    }
}

/// Refuses what stands at byte `at`, after an archive's end.
pub fn trailing(at: u64) -> Violation {
    let message =
        "something other than zeros stands after the archive's end: the archive is damaged, or hides something";
    Violation::new(Rule::InvalidField, "end of archive", format!("byte {at}"), message)
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64)
}

/// The name without `./` at its beginning and `/` at its end, and whether there was one at its end.
fn clean_name(raw: &[u8]) -> Result<(Vec<u8>, bool), Violation> {
    let wrong = |message: &str| Err(Violation::new(Rule::InvalidField, "name", shown(raw), message));
    if raw.starts_with(b"/") {
        return wrong(
            "an absolute name in an archive means a place of the machine it is unpacked on: use relative ones",
        );
    }
    let parts = || raw.split(|byte| *byte == b'/');
    if parts().any(|part| part == b"..") {
        return wrong("a name with `..` in it leads out of the archive: use names inside of it");
    }
    if raw.iter().any(u8::is_ascii_control) || raw.len() > 4096 {
        return wrong("a name has up to 4096 characters that can be shown");
    }
    let parts: Vec<_> = parts().filter(|part| !part.is_empty() && *part != b".").collect();
    Ok((parts.join(&b'/'), raw.ends_with(b"/")))
}

/// A name as a person may read it.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(80).flat_map(char::escape_debug).collect()
}

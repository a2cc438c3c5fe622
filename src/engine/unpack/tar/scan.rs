//! Goes from header to header, whoever reads them.

use super::{
    BLOCK, Member,
    header::{Header, has_magic},
    pax::{Extension, sparse},
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
    /// A member.
    Member(Member),
    /// The first of the two blocks of zeros that end an archive.
    Zeros,
    /// The second: nothing but zeros may follow.
    End,
}

/// Where in an archive one is.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    at: u64,
    headers: u32,
    zeros: bool,
    /// Typeflag of the extended header whose body is awaited.
    awaited: Option<(u8, u64)>,
    extension: Extension,
}

impl Scan {
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
        if self.headers > MAX_HEADERS {
            let message = format!("an archive of up to {MAX_HEADERS} headers is read: put fewer files into it");
            return Err(Violation::new(Rule::SizeLimit, "headers", self.headers, message));
        }
        let header = Header::parse(block, at)?;
        match header.typeflag {
            b'x' | b'g' | b'L' | b'K' => self.await_extension(&header),
            _ => self.member(&header).map(Item::Member),
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
            // The target of a link, and links are refused.
            _ => Ok(()),
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

    fn member(&mut self, header: &Header) -> Result<Member, Violation> {
        let extension = std::mem::take(&mut self.extension);
        let raw = extension.path.unwrap_or_else(|| header.name.clone());
        let (name, trailing_slash) = clean_name(&raw)?;
        // Before typeflags there were, a folder had a name with a slash at its end.
        let folder = match header.typeflag {
            b'0' | b'7' | 0 => trailing_slash,
            b'5' => true,
            b'1' | b'2' => return Err(link(&name)),
            b'S' => return Err(sparse()),
            other => {
                let message = format!(
                    "{name} is a device, a pipe or another thing that holds no bytes of its own: leave it out of the archive"
                );
                return Err(Violation::new(Rule::InvalidField, "typeflag", char::from(other).escape_debug(), message));
            }
        };
        let size = if folder { 0 } else { extension.size.unwrap_or(header.size) };
        let offset = self.at;
        self.at = offset.checked_add(padded(size)).filter(|_| size < u64::MAX / 2).ok_or_else(|| {
            Violation::new(Rule::InvalidField, "size", size, format!("{name} is larger than anything can be"))
        })?;
        Ok(Member { name, folder, offset, size })
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
fn clean_name(raw: &[u8]) -> Result<(String, bool), Violation> {
    let text = String::from_utf8_lossy(raw);
    let wrong = |message: &str| {
        let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
        Err(Violation::new(Rule::InvalidField, "name", shown, message))
    };
    if text.starts_with('/') {
        return wrong(
            "an absolute name in an archive means a place of the machine it is unpacked on: use relative ones",
        );
    }
    if text.split('/').any(|part| part == "..") {
        return wrong("a name with `..` in it leads out of the archive: use names inside of it");
    }
    if text.chars().any(char::is_control) || text.len() > 4096 {
        return wrong("a name has up to 4096 characters that can be shown");
    }
    let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok((parts.join("/"), text.ends_with('/')))
}

fn link(name: &str) -> Violation {
    let message = "a link in an archive names another file: put the file itself there";
    Violation::new(Rule::ExternalDataFile, "typeflag", name, message)
}

//! Extended headers (POSIX.1-2001, "pax Extended Header"): `length keyword=value` records.

use crate::model::{Rule, Violation};

/// What an extended header says of the member after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extension {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub owner: Option<u64>,
    pub group: Option<u64>,
    pub modified: Option<u64>,
    /// Extended attributes, by their keywords.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Beginning of the keywords of extended attributes.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

impl Extension {
    /// Reads the records of a pax header into this.
    ///
    /// # Errors
    /// A violation if they are not what they should be, or say that the member is sparse.
    pub fn read(&mut self, mut body: &[u8]) -> Result<(), Violation> {
        while !body.is_empty() {
            let (keyword, value, rest) = record(body).ok_or_else(|| {
                let found = String::from_utf8_lossy(body.get(..body.len().min(40)).unwrap_or_default());
                broken(&found.escape_debug().to_string())
            })?;
            match keyword {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number("size", value)?),
                b"uid" => self.owner = Some(number("uid", value)?),
                b"gid" => self.group = Some(number("gid", value)?),
                // Fractions of a second are not kept, and times before 1970 are that.
                b"mtime" => {
                    let seconds = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                    self.modified = Some(if seconds.starts_with(b"-") { 0 } else { number("mtime", seconds)? });
                }
                _ if keyword.starts_with(ATTRIBUTE) => self.attributes.push((keyword.to_vec(), value.to_vec())),
                _ if keyword.starts_with(b"GNU.sparse.") => return Err(sparse()),
                _ => {}
            }
            body = rest;
        }
        Ok(())
    }
}

fn number(keyword: &str, value: &[u8]) -> Result<u64, Violation> {
    let text = String::from_utf8_lossy(value);
    text.parse().map_err(|_| broken(&format!("{keyword}={}", text.escape_debug())))
}

/// Keyword, value and what follows the first record.
fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = body.iter().position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(body.get(..blank)?).ok()?.parse().ok()?;
    let (record, rest) = body.split_at_checked(length)?;
    let text = record.get(blank.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|b| *b == b'=')?;
    let (keyword, value) = text.split_at_checked(equals)?;
    Some((keyword, value.get(1..)?, rest))
}

fn broken(found: &str) -> Violation {
    let message =
        "an extended header of the archive is not made of `length keyword=value` records: the archive is damaged";
    Violation::new(Rule::InvalidField, "pax", found, message)
}

/// Refuses a member with holes.
pub(super) fn sparse() -> Violation {
    let message =
        "a sparse member does not stand in one stretch of the archive: make the archive without `tar --sparse`";
    Violation::new(Rule::UnsupportedFormat, "typeflag", "sparse", message)
}

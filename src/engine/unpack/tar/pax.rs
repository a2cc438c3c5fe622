//! Extended headers (POSIX.1-2001, "pax Extended Header"): `length keyword=value` records.

use crate::model::{Rule, Violation};

/// What an extended header says of the member after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extension {
    pub path: Option<Vec<u8>>,
    pub size: Option<u64>,
}

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
                b"size" => {
                    let text = String::from_utf8_lossy(value);
                    self.size = Some(text.parse().map_err(|_| broken(&format!("size={}", text.escape_debug())))?);
                }
                _ if keyword.starts_with(b"GNU.sparse.") => return Err(sparse()),
                _ => {}
            }
            body = rest;
        }
        Ok(())
    }
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

//! Room on the volume: how much there is, how much must stay free, and what to say when there is none.

use std::os::fd::OwnedFd;

use super::{super::Capacity, place::Place};
use crate::error::{Error, Kind, Result};

/// What may be written on the strength of one look at the volume, in bytes at most. The reserve can be overrun by this much for
/// each sink that writes at the same time.
const MAX_CREDIT: u64 = 64 << 20;
/// The credit is this part of what is left, so that looks become frequent where room gets short.
const CREDIT_SHARE: u64 = 16;

/// Size of the volume, and what is left of it for objects, the reserve taken off.
pub(super) fn capacity(place: &Place, on: &OwnedFd) -> Result<Capacity> {
    let stat = rustix::fs::fstatvfs(on).map_err(|e| place.error("asking for free space", e))?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(place.min_free());
    Ok(Capacity { total: stat.f_blocks.saturating_mul(stat.f_frsize), available })
}

/// The error for a volume without room. `needed` is how many bytes were to be written, `what` for which object.
pub(super) fn no_space(place: &Place, on: &OwnedFd, what: &str, needed: u64) -> Error {
    let available = capacity(place, on).map_or_else(|_| "an unknown number".to_owned(), |c| c.available.to_string());
    let reserve = match place.min_free() {
        0 => String::new(),
        bytes => format!(" beside the {bytes} kept free"),
    };
    let message = format!(
        "store {}: no room for {what} in {}: {needed} bytes needed, {available} available{reserve}; \
         delete images, enlarge the volume, or name another store",
        place.name(),
        place.path_of("").display()
    );
    Error::new(Kind::NoSpace, message)
}

/// Lets bytes pass while they leave the reserve alone.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    credit: u64,
}

impl Allowance {
    /// Takes `bytes`, or says that there is no room for them.
    pub(super) fn take(&mut self, place: &Place, on: &OwnedFd, what: &str, bytes: u64) -> Result<()> {
        if self.credit < bytes {
            let available = capacity(place, on)?.available;
            if available < bytes {
                return Err(no_space(place, on, what, bytes));
            }
            self.credit = (available / CREDIT_SHARE).clamp(bytes, MAX_CREDIT.max(bytes));
        }
        self.credit = self.credit.saturating_sub(bytes);
        Ok(())
    }
}

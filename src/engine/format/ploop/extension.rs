//! The format extension: features that a file may have beside its disk. What they hold is not read; whether it must be, is.
//!
//! Knows one cluster of the file.

use md5::{Digest as _, Md5};

use crate::{
    format::fields::{le_u32, le_u64},
    model::{Rule, Violation},
};

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
/// `magic` of the last feature.
const END: u64 = 0;
/// `magic` of dirty bitmaps, which tell what changed since a backup: nothing of the disk.
const DIRTY_BITMAP: u64 = 0x2038_5fae_252c_b34a;
/// `flags`: whoever does not know the feature must leave the file alone.
const NECESSARY: u64 = 1 << 0;
/// Length of the extension's header, and of a feature's, in bytes.
const HEADER: usize = 24;

/// Holds the extension, a whole cluster, against its rules.
///
/// # Errors
/// The first violation.
pub(super) fn check(cluster: &[u8]) -> Result<(), Violation> {
    let magic = le_u64(cluster, 0).unwrap_or(0);
    if magic != MAGIC {
        let message = "no format extension lies where the header says";
        return Err(Violation::new(Rule::InvalidField, "format_extension.magic", format!("{magic:#x}"), message));
    }
    let told = cluster.get(8..HEADER).unwrap_or_default();
    let features = cluster.get(HEADER..).unwrap_or_default();
    if told != Md5::digest(features).as_slice() {
        let message =
            "the format extension does not hold to its checksum: the file was damaged; fetch or make it again";
        return Err(Violation::new(Rule::Corrupt, "format_extension.m_CheckSum", hex::encode(told), message));
    }
    check_features(features)
}

fn check_features(mut features: &[u8]) -> Result<(), Violation> {
    loop {
        let (Some(magic), Some(flags), Some(size)) = (le_u64(features, 0), le_u64(features, 8), le_u32(features, 16))
        else {
            let message = "the list of features does not end inside its cluster";
            return Err(Violation::new(Rule::InvalidField, "format_extension", "no end", message));
        };
        if magic == END {
            return Ok(());
        }
        if magic != DIRTY_BITMAP && flags & NECESSARY != 0 {
            let message = "the file says that this feature is necessary, and it is not known: \
                           convert the image with `qemu-img convert -O parallels` where it was made";
            let field = "format_extension.feature";
            return Err(Violation::new(Rule::UnknownIncompatibleFeature, field, format!("{magic:#x}"), message));
        }
        let padded = usize::try_from(size).ok().and_then(|size| size.checked_next_multiple_of(8));
        let next = padded.and_then(|padded| features.get(HEADER.checked_add(padded)?..));
        let Some(next) = next else {
            let message = "the data of a feature reaches past the extension's cluster";
            return Err(Violation::new(Rule::InvalidField, "format_extension.data_size", size, message));
        };
        features = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An extension with these features: magic, flags, length of the data.
    fn cluster(features: &[(u64, u64, u32)], length: usize) -> Vec<u8> {
        let mut body = Vec::new();
        for (magic, flags, size) in features {
            body.extend([magic.to_le_bytes(), flags.to_le_bytes()].concat());
            body.extend([size.to_le_bytes(), [0; 4]].concat());
            body.resize(body.len() + size.next_multiple_of(8) as usize, 7);
        }
        body.resize(length - HEADER, 0);
        [&MAGIC.to_le_bytes()[..], &Md5::digest(&body), &body].concat()
    }

    fn rule(cluster: &[u8]) -> Option<Rule> {
        check(cluster).err().map(|violation| violation.rule)
    }

    #[test]
    fn features_that_need_not_be_known_are_passed_over() {
        assert_eq!(rule(&cluster(&[], 512)), None);
        assert_eq!(rule(&cluster(&[(DIRTY_BITMAP, 1, 100), (77, 0, 5), (78, 2, 0)], 512)), None);
        assert_eq!(rule(&cluster(&[(77, 3, 5)], 512)), Some(Rule::UnknownIncompatibleFeature));
    }

    #[test]
    fn damage_is_seen() {
        let mut damaged = cluster(&[(DIRTY_BITMAP, 0, 100)], 512);
        damaged[300] ^= 1;
        assert_eq!(rule(&damaged), Some(Rule::Corrupt));
        damaged[0] ^= 1;
        assert_eq!(rule(&damaged), Some(Rule::InvalidField));
        assert_eq!(rule(&cluster(&[(DIRTY_BITMAP, 0, 464)], 512)), Some(Rule::InvalidField), "no end");
        let mut long = cluster(&[(DIRTY_BITMAP, 0, 8)], 512);
        long[HEADER + 16..HEADER + 20].fill(0xff);
        let sum = Md5::digest(&long[HEADER..]);
        long[8..HEADER].copy_from_slice(&sum);
        assert_eq!(rule(&long), Some(Rule::InvalidField), "too long");
        assert_eq!(rule(&[]), Some(Rule::InvalidField));
    }
}

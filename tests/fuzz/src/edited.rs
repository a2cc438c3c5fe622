//! From an input to a file.
//!
//! Plain bytes are a poor way to say what matters in an image: vhdx has its parts megabytes apart, vhd and vhdx are read no further
//! than their checksums, and a byte of a table has few neighbours in a file of zeros. So an input says what to change in a good image, by
//! the part in which it stands, and the checksums are mended afterwards.
//!
//! ```text
//! 00                      the rest is the file
//! nn (bit 7: no mending)  the good image number (nn & 7f) - 1, and changes to it:
//!     part, offset (u16), count, count bytes      part 254: the file ends offset × 512 + count bytes sooner
//!                                                 part 255: the same, later
//! ```

use crate::sparse::Sparse;

/// What a target knows of a format.
pub struct Format {
    /// Good images.
    pub bases: fn() -> &'static [Sparse],
    /// Where their parts begin, in bytes.
    pub parts: &'static [u64],
    /// Makes checksums right.
    pub mend: fn(&mut Sparse),
}

const PLAIN: u8 = 0;
const UNMENDED: u8 = 0x80;
const SOONER: u8 = 254;
const LATER: u8 = 255;
/// Longest file, in bytes: a stream is read to its end, and a long one of holes takes all of the time.
const MAX_LENGTH: u64 = 64 << 20;

impl Format {
    /// The file that `data` describes.
    pub fn file(&self, data: &[u8]) -> Sparse {
        let Some((selector, rest)) = data.split_first() else { return Sparse::default() };
        let number = usize::from(selector & !UNMENDED);
        let mut file = if number == usize::from(PLAIN) {
            Sparse::new(rest)
        } else {
            let bases = (self.bases)();
            let mut file = bases[(number - 1) % bases.len()].clone();
            self.edit(&mut file, rest);
            file
        };
        if selector & UNMENDED == 0 {
            (self.mend)(&mut file);
        }
        file
    }

    fn edit(&self, file: &mut Sparse, mut changes: &[u8]) {
        while let [part, low, high, count, rest @ ..] = changes {
            let offset = u64::from(u16::from_le_bytes([*low, *high]));
            let distance = offset * 512 + u64::from(*count);
            match *part {
                SOONER => file.set_length(file.length().saturating_sub(distance)),
                LATER => file.set_length(MAX_LENGTH.min(file.length() + distance)),
                _ => {
                    let (bytes, behind) = rest.split_at(rest.len().min(usize::from(*count)));
                    file.write(self.parts[usize::from(*part) % self.parts.len()] + offset, bytes);
                    changes = behind;
                    continue;
                }
            }
            changes = rest;
        }
    }
}

//! Digests of bytes as received, written `algorithm:hex` as OCI and glance users write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A hash function that a checksum may be declared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DigestAlgorithm {
    /// RFC 1321. Not collision resistant; accepted because publishers still offer nothing else.
    Md5,
    /// FIPS 180-4. Not collision resistant; accepted for the same reason.
    Sha1,
    /// FIPS 180-4. Always computed over the bytes as received.
    Sha256,
    /// FIPS 180-4.
    Sha512,
    /// The BLAKE3 paper, 32 byte output.
    Blake3,
}

impl DigestAlgorithm {
    /// All algorithms, in order of strength.
    pub const ALL: [Self; 5] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512, Self::Blake3];

    /// Length of the digest in bytes.
    pub const fn length(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The name used before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// The algorithm whose plain hex digest has `length` characters, as in a `SHA256SUMS` file.
    /// 64 characters mean SHA-256, never BLAKE3, because that is what publishers' files hold.
    pub fn from_hex_length(length: usize) -> Option<Self> {
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512].into_iter().find(|a| a.length() * 2 == length)
    }
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// No colon.
    #[error("`{0}` is not a digest: write it as algorithm:hex, for example sha256:9f86d0…")]
    NoAlgorithm(String),
    /// Unknown name before the colon.
    #[error("`{0}` is not a known digest algorithm: use md5, sha1, sha256, sha512 or blake3")]
    UnknownAlgorithm(String),
    /// Not hex, or of the wrong length.
    #[error("a {algorithm} digest has {expected} hex digits, found `{found}`")]
    BadHex {
        /// The algorithm named.
        algorithm: DigestAlgorithm,
        /// How many hex digits it needs.
        expected: usize,
        /// What stood there.
        found: String,
    },
}

impl FromStr for DigestAlgorithm {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = text.trim().to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|a| a.name() == wanted)
            .ok_or_else(|| ParseDigestError::UnknownAlgorithm(text.to_owned()))
    }
}

/// A digest: which algorithm, and its bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: DigestAlgorithm,
    bytes: Box<[u8]>,
}

impl Digest {
    /// A digest from raw bytes. `None` if `bytes` is not as long as the algorithm's digests are.
    pub fn new(algorithm: DigestAlgorithm, bytes: &[u8]) -> Option<Self> {
        (bytes.len() == algorithm.length()).then(|| Self { algorithm, bytes: bytes.into() })
    }

    pub(super) fn from_blake3(bytes: &[u8; 32]) -> Self {
        Self { algorithm: DigestAlgorithm::Blake3, bytes: bytes.as_slice().into() }
    }

    /// Which hash function made it.
    pub fn algorithm(&self) -> DigestAlgorithm {
        self.algorithm
    }

    /// The digest itself.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest in lower-case hex, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digits) =
            text.trim().split_once(':').ok_or_else(|| ParseDigestError::NoAlgorithm(text.to_owned()))?;
        let algorithm: DigestAlgorithm = name.parse()?;
        hex::decode(digits.trim()).ok().and_then(|bytes| Self::new(algorithm, &bytes)).ok_or_else(|| {
            ParseDigestError::BadHex { algorithm, expected: algorithm.length() * 2, found: digits.to_owned() }
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_what_is_not_a_digest() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Digest>().unwrap().to_string(), text);
        assert!(matches!("0a0a".parse::<Digest>(), Err(ParseDigestError::NoAlgorithm(_))));
        assert!(matches!("crc:00".parse::<Digest>(), Err(ParseDigestError::UnknownAlgorithm(_))));
        assert!(matches!("md5:00".parse::<Digest>(), Err(ParseDigestError::BadHex { expected: 32, .. })));
        assert!(matches!("md5:zz".parse::<Digest>(), Err(ParseDigestError::BadHex { .. })));
    }

    #[test]
    fn plain_hex_is_recognised_by_length() {
        assert_eq!(DigestAlgorithm::from_hex_length(64), Some(DigestAlgorithm::Sha256));
        assert_eq!(DigestAlgorithm::from_hex_length(128), Some(DigestAlgorithm::Sha512));
        assert_eq!(DigestAlgorithm::from_hex_length(63), None);
    }
}

//! The checksum files that publishers put beside their images: `SHA256SUMS`, `CHECKSUM`, `image.qcow2.sha256`.
//!
//! Knows the notations of coreutils and BSD, bare digests, and the clear-signed wrapper around them. The signature of the
//! wrapper is not checked here.

use futures::StreamExt;
use percent_encoding::percent_decode_str;
use url::Url;

use super::{HttpConfig, HttpSource, Source, display_url};
use crate::{
    error::{Error, Kind, Result},
    model::{Digest, DigestAlgorithm},
};

/// Largest checksum file read, in bytes. The longest published ones list some thousand files in about 300 KiB.
const MAX_FILE: usize = 1 << 20;

/// A checksum file that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Named entries, in the file's order.
    named: Vec<(String, Digest)>,
    /// Digests without a name.
    bare: Vec<Digest>,
}

impl Checksums {
    /// Reads the text of a checksum file. Lines that are no entries are passed over: comments, armour, unknown hashes.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in signed_part(text).lines().map(str::trim_end) {
            if let Some((name, digest)) = parse_bsd(line).or_else(|| parse_coreutils(line)) {
                found.named.push((name, digest));
            } else if let Some(digest) = parse_plain(line.trim()) {
                found.bare.push(digest);
            }
        }
        found
    }

    /// The digest of the file called `name`, of the strongest algorithm given.
    ///
    /// # Errors
    /// `NotFound` if the file has none; `InvalidInput` if it has several that differ.
    pub fn pick(&self, name: &str) -> Result<Digest> {
        let exact = self.named.iter().filter(|(entry, _)| entry.trim_start_matches("./") == name);
        let by_last_part = self.named.iter().filter(|(entry, _)| entry.rsplit('/').next() == Some(name));
        let mut candidates: Vec<_> = exact.map(|(_, digest)| digest).collect();
        if candidates.is_empty() {
            candidates = by_last_part.map(|(_, digest)| digest).collect();
        }
        if candidates.is_empty() {
            candidates = self.nameless();
        }
        let Some(best) = candidates.iter().max_by_key(|digest| strength(digest.algorithm())) else {
            let count = self.named.len().saturating_add(self.bare.len());
            return Err(Error::new(Kind::NotFound, format!("no entry for `{name}` among {count} entries")));
        };
        if candidates.iter().any(|other| other.algorithm() == best.algorithm() && other != best) {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("several different {} digests for `{name}`", best.algorithm()),
            ));
        }
        Ok((*best).clone())
    }

    /// What stands for a file without naming it: the only entry, if it has no name or the one of standard input.
    fn nameless(&self) -> Vec<&Digest> {
        match (self.named.as_slice(), self.bare.as_slice()) {
            ([], [digest]) => vec![digest],
            ([(name, digest)], []) if name == "-" => vec![digest],
            _ => vec![],
        }
    }
}

/// MD5 and SHA-1 can be forged; of the others the longer one.
fn strength(algorithm: DigestAlgorithm) -> u8 {
    match algorithm {
        DigestAlgorithm::Md5 => 0,
        DigestAlgorithm::Sha1 => 1,
        DigestAlgorithm::Sha256 => 2,
        DigestAlgorithm::Blake3 => 3,
        DigestAlgorithm::Sha512 => 4,
    }
}

/// What a clear-signed text covers (RFC 9580, section 7); the whole text if it is not signed.
fn signed_part(text: &str) -> &str {
    let Some((_, rest)) = text.split_once("-----BEGIN PGP SIGNED MESSAGE-----") else { return text };
    let body = rest.split_once("\n\n").or_else(|| rest.split_once("\r\n\r\n")).map_or(rest, |(_, body)| body);
    body.split_once("-----BEGIN PGP SIGNATURE-----").map_or(body, |(body, _)| body)
}

/// `SHA256 (name) = hex`, as BSD's tools and `sha256sum --tag` write it.
fn parse_bsd(line: &str) -> Option<(String, Digest)> {
    let (algorithm, rest) = line.trim_start().split_once(" (")?;
    let (name, digits) = rest.rsplit_once(") = ")?;
    let algorithm: DigestAlgorithm = algorithm.replace('-', "").parse().ok()?;
    Some((name.to_owned(), digest(algorithm, digits)?))
}

/// `hex  name` and `hex *name`, as the coreutils write it; a leading backslash says that the name is escaped.
fn parse_coreutils(line: &str) -> Option<(String, Digest)> {
    let (escaped, line) = line.strip_prefix('\\').map_or((false, line), |rest| (true, rest));
    let (digits, rest) = line.trim_start().split_once([' ', '\t'])?;
    let name = rest.trim_start();
    let name = name.strip_prefix('*').unwrap_or(name);
    if name.is_empty() {
        return None;
    }
    let algorithm = DigestAlgorithm::from_hex_length(digits.len())?;
    let name = if escaped { name.replace("\\n", "\n").replace("\\\\", "\\") } else { name.to_owned() };
    Some((name, digest(algorithm, digits)?))
}

/// A digest and nothing else, with or without its algorithm.
fn parse_plain(line: &str) -> Option<Digest> {
    line.parse().ok().or_else(|| digest(DigestAlgorithm::from_hex_length(line.len())?, line))
}

fn digest(algorithm: DigestAlgorithm, digits: &str) -> Option<Digest> {
    Digest::new(algorithm, &hex::decode(digits.trim()).ok()?)
}

/// The name under which a checksum file lists what `url` gives: the last part of its path.
pub fn file_name(url: &Url) -> Option<String> {
    let last = url.path_segments()?.rfind(|part| !part.is_empty())?;
    Some(percent_decode_str(last).decode_utf8_lossy().into_owned())
}

/// Fetches the checksum file that `config` names, and takes from it the digest of the file called `name`.
///
/// # Errors
/// Those of the source, and those of `Checksums::pick`.
pub async fn fetch_checksum(config: HttpConfig, name: &str) -> Result<Digest> {
    let what = format!("checksum file {}", display_url(&config.url));
    // A cut is harmless here: a digest that is cut short is no digest, and one that is missing is an error.
    let source = HttpSource::new(HttpConfig { accept_unframed: true, ..config })?;
    let mut stream = source.open().await?.stream;
    let mut text = Vec::new();
    while let Some(piece) = stream.next().await {
        text.extend_from_slice(&piece?);
        if text.len() > MAX_FILE {
            let message =
                format!("{what}: it is longer than {MAX_FILE} bytes, so it is no checksum file: check the URL");
            return Err(Error::new(Kind::InvalidInput, message));
        }
    }
    Checksums::parse(&String::from_utf8_lossy(&text)).pick(name).map_err(|e| e.context(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const M: &str = "cccccccccccccccccccccccccccccccc";

    fn pick(text: &str, name: &str) -> Result<String, String> {
        Checksums::parse(text).pick(name).map(|d| d.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn every_notation_is_read() {
        let a = Ok(format!("sha256:{A}"));
        assert_eq!(pick(&format!("{B}  other\n{A}  x.img\n"), "x.img"), a);
        assert_eq!(pick(&format!("{B} *other\r\n{A} *x.img\r\n"), "x.img"), a);
        assert_eq!(pick(&format!("{A}  ./sub/x.img\n"), "x.img"), a);
        assert_eq!(pick(&format!("# x.img: 10 bytes\nSHA256 (x.img) = {A}\n"), "x.img"), a);
        assert_eq!(pick(&format!("SHA2-256(x.img)= {A}\nsha256:{A}"), "x.img"), a);
        assert_eq!(pick(&format!("{A}\n"), "x.img"), a);
        assert_eq!(pick(&A.to_uppercase(), "x.img"), a);
        assert_eq!(pick(&format!("{A}  -\n"), "x.img"), a);
        assert_eq!(pick(&format!("{A}  with space (1).img\n"), "with space (1).img"), a);
        assert_eq!(pick(&format!("SHA256 (odd) = 1) = {A}\n"), "odd) = 1"), a);
        assert_eq!(pick(&format!("\\{A}  a\\\\b\n"), "a\\b"), a);
        assert_eq!(pick(&format!("MD5 (x.img) = {M}\nSHA256 (x.img) = {A}\n"), "x.img"), a);
        assert_eq!(pick(&format!("{M}  x.img"), "x.img"), Ok(format!("md5:{M}")));
    }

    #[test]
    fn a_signed_file_counts_only_what_is_signed() {
        let text = format!(
            "{B}  x.img\n-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{A}  x.img\n-----BEGIN PGP SIGNATURE-----\n\n{B}  x.img\n-----END PGP SIGNATURE-----\n"
        );
        assert_eq!(pick(&text, "x.img"), Ok(format!("sha256:{A}")));
    }

    #[test]
    fn what_cannot_be_decided_is_an_error_with_numbers() {
        assert_eq!(pick(&format!("{A}  a\n{B}  b\n"), "x.img").unwrap_err(), "no entry for `x.img` among 2 entries");
        assert_eq!(pick("<html>", "x.img").unwrap_err(), "no entry for `x.img` among 0 entries");
        assert_eq!(pick(&format!("{A}\n{B}\n"), "x.img").unwrap_err(), "no entry for `x.img` among 2 entries");
        assert!(
            pick(&format!("{A}  p/x.img\n{B}  q/x.img\n"), "x.img").unwrap_err().contains("several different sha256")
        );
        assert_eq!(pick(&format!("{A}  p/x.img\n{B}  x.img\n"), "x.img"), Ok(format!("sha256:{B}")));
        assert_eq!(pick(&format!("{A}  p/x.img\n{A}  q/x.img\n"), "x.img"), Ok(format!("sha256:{A}")));
    }

    #[test]
    fn the_name_is_the_last_part_of_the_path() {
        let name = |url: &str| file_name(&url.parse().unwrap());
        assert_eq!(name("https://h/a/b%20c.qcow2?x=/d"), Some("b c.qcow2".to_owned()));
        assert_eq!(name("https://h/a/"), Some("a".to_owned()));
        assert_eq!(name("https://h/"), None);
    }
}

//! The manifest of an OVF package: a line `SHA256(name)= hex` for each file (DSP0243, section 5.1).

use std::collections::BTreeSet;

use super::contents::Contents;
use crate::{
    model::{Digest, DigestAlgorithm, Rule, Violation},
    verify::DigestSet,
};

/// Lines of a manifest, one for each member.
const MAX_LINES: usize = 1024;

/// Holds the manifest against the members; those `needed` must be listed. False if a digest is needed that was not computed;
/// `by_range` says that this is to be expected of all but the texts.
///
/// # Errors
/// A violation naming the member that is not as its line says.
pub(super) fn check<'a>(
    text: &[u8],
    contents: &Contents,
    needed: impl Iterator<Item = &'a str>,
    by_range: bool,
) -> Result<bool, Violation> {
    let lines = parse(text)?;
    for (name, _) in &lines {
        if contents.complete && contents.find(name).is_none() {
            let message = "the manifest lists a file that the archive does not hold: it is not complete";
            return Err(Violation::new(Rule::ChecksumMismatch, "manifest", name, message));
        }
    }
    for name in needed {
        if !lines.iter().any(|(listed, _)| listed == name) {
            let message = "the manifest does not list this file, so nothing says that it is the right one";
            return Err(Violation::new(Rule::ChecksumMismatch, "manifest", name, message));
        }
    }
    let mut known = true;
    for (name, expected) in &lines {
        let Some(stored) = contents.find(name) else { continue };
        let computed = stored.digests.iter().find(|digest| digest.algorithm() == expected.algorithm()).cloned();
        let computed = computed.or_else(|| stored.text.as_deref().and_then(|text| digest(text, expected.algorithm())));
        match computed {
            Some(found) if found == *expected => {}
            Some(found) => {
                let message = format!(
                    "the manifest says that {name} must have {expected}: the archive was damaged or changed; fetch or make it again"
                );
                return Err(Violation::new(Rule::ChecksumMismatch, name, found, message));
            }
            None => known &= by_range,
        }
    }
    Ok(known)
}

/// What the lines of a manifest are computed with; `None` if it is none.
pub(super) fn algorithms(text: &[u8]) -> Option<Vec<DigestAlgorithm>> {
    let lines = parse(text).ok()?;
    let unique: BTreeSet<_> = lines.iter().map(|(_, digest)| digest.algorithm()).collect();
    Some(unique.into_iter().collect())
}

pub(super) fn digest(bytes: &[u8], algorithm: DigestAlgorithm) -> Option<Digest> {
    let mut set = DigestSet::new([algorithm]);
    set.update(bytes);
    set.finish().digests.pop()
}

/// Names and digests.
fn parse(text: &[u8]) -> Result<Vec<(String, Digest)>, Violation> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() > MAX_LINES {
        let message = format!("a manifest of up to {MAX_LINES} lines is read");
        return Err(Violation::new(Rule::SizeLimit, "manifest", lines.len(), message));
    }
    let parsed = lines.into_iter().map(|line| {
        parse_line(line).ok_or_else(|| {
            let shown: String = line.chars().take(80).flat_map(char::escape_debug).collect();
            let message = "a manifest has lines of the form `SHA256(name)= digest`, with SHA1, SHA256 or SHA512";
            Violation::new(Rule::InvalidField, "manifest", shown, message)
        })
    });
    parsed.collect()
}

/// One line: what was digested, and the digest.
pub(super) fn parse_line(line: &str) -> Option<(String, Digest)> {
    let (algorithm, name, hex) = split_line(line)?;
    let name = name.trim_start_matches("./").to_owned();
    Some((name, format!("{algorithm}:{hex}").parse().ok()?))
}

/// The parts of `ALGORITHM(name)= hex`, the algorithm by our names.
pub(super) fn split_line(line: &str) -> Option<(&'static str, &str, &str)> {
    let (algorithm, rest) = line.split_once('(')?;
    let (name, hex) = rest.rsplit_once(")=").or_else(|| rest.rsplit_once(") ="))?;
    let algorithm = match algorithm.trim().to_ascii_uppercase().as_str() {
        "SHA1" => "sha1",
        "SHA256" => "sha256",
        "SHA512" => "sha512",
        _ => return None,
    };
    Some((algorithm, name, hex.trim()))
}

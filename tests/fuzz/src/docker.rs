//! Container images: layers and documents as an input describes them, with the digests that no fuzzer guesses.
//!
//! ```text
//! flags (bit 0: an OCI layout, else as `docker save` does; bit 1: docker is declared)
//! layers and documents, ff between them, fd before the first document
//!     layer     entries, fe between them: typeflag, name, 00, link, 00, content
//!     document  manifest, config, index: as it is, but for @C @M @0 … @9, the SHA-256 of the config, the manifest and a layer, and
//!               #C #M #0 … #9, their lengths
//! ```
//! Documents that are left out are those of a good image.

use bytes::Bytes;
use vitrine_engine::{
    model::{ContainerFormat, DigestAlgorithm},
    verify::DigestSet,
};

use crate::container::{archive, check, tar_of};

const OCI: u8 = 1;
const DECLARED: u8 = 2;
/// Layers that have a number.
const MAX_LAYERS: usize = 10;

/// The target `docker`.
pub fn docker(data: &[u8]) -> bool {
    let Some((flags, rest)) = data.split_first() else { return false };
    let cut = rest.iter().position(|byte| *byte == 0xfd).unwrap_or(rest.len());
    let layers: Vec<_> = rest[..cut].split(|byte| *byte == 0xff).take(MAX_LAYERS).map(layer).collect();
    let documents = rest.get(cut + 1..).unwrap_or_default();
    let members = members(&layers, documents, flags & OCI != 0);
    let members: Vec<_> = members.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    check(&archive(&members), (flags & DECLARED != 0).then_some(ContainerFormat::Docker))
}

fn layer(entries: &[u8]) -> Bytes {
    let entries = entries.split(|byte| *byte == 0xfe).filter(|entry| !entry.is_empty());
    tar_of(entries.map(|entry| {
        let mut parts = entry[1..].splitn(3, |byte| *byte == 0);
        let mut part = || parts.next().unwrap_or_default();
        (entry[0], part(), part(), part())
    }))
}

/// What is known of a blob: the letter that stands for it, its digest in hexadecimal, its length.
type Known = (char, String, usize);

fn known(letter: char, bytes: &[u8]) -> Known {
    let mut digests = DigestSet::new([DigestAlgorithm::Sha256]);
    digests.update(bytes);
    let digest = digests.finish().digests[0].to_string();
    (letter, digest.trim_start_matches("sha256:").to_owned(), bytes.len())
}

fn filled(text: &str, known: &[Known]) -> Bytes {
    let filled = known.iter().fold(text.to_owned(), |text, (letter, digest, length)| {
        text.replace(&format!("@{letter}"), digest).replace(&format!("#{letter}"), &length.to_string())
    });
    filled.into()
}

fn members(layers: &[Bytes], documents: &[u8], oci: bool) -> Vec<(String, Bytes)> {
    let mut texts = documents.split(|byte| *byte == 0xff).map(String::from_utf8_lossy);
    let mut text = |default: String| match texts.next() {
        Some(text) if !text.is_empty() => text.into_owned(),
        _ => default,
    };
    let mut blobs: Vec<_> = ('0'..='9').zip(layers).map(|(letter, bytes)| known(letter, bytes)).collect();
    let letters: Vec<_> = blobs.iter().map(|(letter, ..)| *letter).collect();
    let each = |form: &dyn Fn(&char) -> String| letters.iter().map(form).collect::<Vec<_>>().join(",");
    let saved = each(&|n| format!("\"@{n}/layer.tar\""));
    let described = each(&|n| format!("{{\"digest\":\"sha256:@{n}\",\"size\":#{n}}}"));
    let manifest = text(if oci {
        format!("{{\"config\":{{\"digest\":\"sha256:@C\",\"size\":#C}},\"layers\":[{described}]}}")
    } else {
        format!("[{{\"Config\":\"@C.json\",\"Layers\":[{saved}]}}]")
    });
    let ids = each(&|n| format!("\"sha256:@{n}\""));
    let config = text(format!("{{\"os\":\"linux\",\"architecture\":\"amd64\",\"rootfs\":{{\"diff_ids\":[{ids}]}}}}"));
    let index = text(
        "{\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:@M\",\"size\":#M}]}".to_owned(),
    );
    let config = filled(&config, &blobs);
    blobs.push(known('C', &config));
    let manifest = filled(&manifest, &blobs);
    let path = |digest: &str| if oci { format!("blobs/sha256/{digest}") } else { format!("{digest}/layer.tar") };
    let mut members: Vec<_> =
        blobs.iter().zip(layers).map(|((_, digest, _), bytes)| (path(digest), bytes.clone())).collect();
    // Equal layers are there once.
    members.sort_by(|(one, _), (two, _)| one.cmp(two));
    members.dedup_by(|(one, _), (two, _)| one == two);
    let id = blobs.last().map(|(_, digest, _)| digest.clone()).unwrap_or_default();
    if oci {
        blobs.push(known('M', &manifest));
        let index = filled(&index, &blobs);
        members.push((path(&id), config));
        members.push((path(&blobs.last().unwrap().1), manifest));
        members.push(("index.json".to_owned(), index));
    } else {
        members.push((format!("{id}.json"), config));
        members.push(("manifest.json".to_owned(), manifest));
    }
    members
}

//! What is sent: a stored copy as it is, with what tells it from every other.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use vitrine_engine::model::{ContainerFormat, Digest, DigestAlgorithm, DiskFormat, StoredImage};

use crate::api::{
    Location,
    data::{CONTENT_DIGEST, DISK_FORMAT, REPR_DIGEST},
};

/// A copy as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Representation {
    /// In bytes.
    pub length: u64,
    /// With its quotes.
    pub etag: String,
    /// Whether every copy with this content has the very same bytes.
    pub same_everywhere: bool,
    headers: Vec<(HeaderName, String)>,
}

impl Representation {
    /// The copy at `location` of the Image `name`, of which the store says `stored`.
    pub fn new(name: &str, location: &Location, stored: &StoredImage) -> Self {
        let (content, format) = (stored.manifest.root(), stored.format.disk_format);
        let same_everywhere = format == DiskFormat::Raw;
        // What an encoder makes of one content may differ from version to version and from store to store.
        let which = if same_everywhere { String::new() } else { format!("-{}", which(location, stored)) };
        let hex = content.to_string();
        let hex = hex.split_once(':').map_or(hex.as_str(), |(_, hex)| hex);
        let mut headers = vec![
            (CONTENT_DIGEST, content.to_string()),
            (DISK_FORMAT, format.to_string()),
            (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}.{format}\"")),
        ];
        headers.extend(repr_digest(stored).map(|digest| (REPR_DIGEST, digest)));
        Self { length: stored.length, etag: format!("\"{hex}-{format}{which}\""), same_everywhere, headers }
    }

    /// Adds what every answer about it has.
    pub fn describe(&self, headers: &mut HeaderMap) {
        let plain = [
            (header::ACCEPT_RANGES, "bytes"),
            (header::CACHE_CONTROL, "private, no-cache"),
            (header::VARY, "authorization"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::ETAG, self.etag.as_str()),
        ];
        let own = self.headers.iter().map(|(name, value)| (name.clone(), value.as_str()));
        for (name, value) in plain.into_iter().chain(own) {
            // Names of objects and formats, hex and base64: all of it may stand in a header.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
    }
}

/// Ten digits for this very copy.
fn which(location: &Location, stored: &StoredImage) -> String {
    let at = location.stored_at.as_ref().map(|at| at.0.to_string());
    let copy = format!("{:?}", (&location.store, &location.node, at, stored.length, stored.format));
    blake3::hash(copy.as_bytes()).to_hex().chars().take(10).collect()
}

/// The digests that were taken of the bytes as received, if those are what is stored.
fn repr_digest(stored: &StoredImage) -> Option<String> {
    let as_is = [DiskFormat::Raw, DiskFormat::Iso, DiskFormat::Ami, DiskFormat::Ari, DiskFormat::Aki];
    let unchanged = stored.format.disk_format == DiskFormat::Raw
        && as_is.contains(&stored.source_format)
        && stored.container_format == ContainerFormat::Bare
        && stored.source_size == stored.length;
    let named = |digest: &Digest| {
        let name = match digest.algorithm() {
            DigestAlgorithm::Sha256 => "sha-256",
            DigestAlgorithm::Sha512 => "sha-512",
            DigestAlgorithm::Md5 | DigestAlgorithm::Sha1 | DigestAlgorithm::Blake3 => return None,
        };
        Some(format!("{name}=:{}:", STANDARD.encode(digest.bytes())))
    };
    let all: Vec<_> = stored.source_digests.iter().filter_map(named).collect();
    (unchanged && !all.is_empty()).then(|| all.join(", "))
}

#[cfg(test)]
mod tests {
    use vitrine_engine::model::{ContentManifest, OutputFormat};

    use super::*;

    fn stored() -> StoredImage {
        StoredImage {
            format: OutputFormat::RAW,
            length: 10,
            source_size: 10,
            source_digests: vec![
                format!("sha256:{}", "00".repeat(32)).parse().unwrap(),
                format!("md5:{}", "00".repeat(16)).parse().unwrap(),
            ],
            source_format: DiskFormat::Raw,
            container_format: ContainerFormat::Bare,
            properties: std::collections::BTreeMap::new(),
            request: None,
            manifest: ContentManifest::default(),
        }
    }

    fn qcow2() -> StoredImage {
        StoredImage { format: OutputFormat { disk_format: DiskFormat::Qcow2, ..OutputFormat::RAW }, ..stored() }
    }

    #[test]
    fn tags_tell_apart_what_differs() {
        let (here, there) = (
            Location { store: "a".to_owned(), ..Location::default() },
            Location { store: "b".to_owned(), ..Location::default() },
        );
        let tag = |location, stored: &StoredImage| Representation::new("x", location, stored).etag;
        assert_eq!(tag(&here, &stored()), tag(&there, &stored()), "raw is raw");
        assert_ne!(tag(&here, &qcow2()), tag(&there, &qcow2()));
        assert_ne!(tag(&here, &qcow2()), tag(&here, &stored()));
        assert!(tag(&here, &qcow2()).starts_with('"') && tag(&here, &qcow2()).ends_with('"'));
    }

    #[test]
    fn a_digest_of_the_whole_is_given_where_it_is_one() {
        let digest = repr_digest(&stored()).unwrap();
        assert_eq!(digest, format!("sha-256=:{}:", STANDARD.encode([0; 32])));
        assert_eq!(repr_digest(&qcow2()), None);
        assert_eq!(repr_digest(&StoredImage { source_size: 9, ..stored() }), None);
        assert_eq!(repr_digest(&StoredImage { source_format: DiskFormat::Vmdk, ..stored() }), None);
        assert_eq!(repr_digest(&StoredImage { container_format: ContainerFormat::Ova, ..stored() }), None);
    }
}

//! Images made in memory, as the tools that people use lay them out.

use std::io::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A tar archive, header by header.
#[derive(Clone, Default)]
pub struct Layer {
    bytes: Vec<u8>,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any entry: name, typeflag, mode, target, content; `change` makes its header wrong.
    pub fn entry(&mut self, name: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> &mut Self {
        self.changed(name, kind, mode, link, content, |_| {})
    }

    pub fn changed(
        &mut self,
        name: &str,
        kind: u8,
        mode: u32,
        link: &str,
        content: &[u8],
        change: impl FnOnce(&mut [u8]),
    ) -> &mut Self {
        if name.len() > 100 {
            self.record("path", name.as_bytes());
        }
        let mut block = [0_u8; 512];
        let short = &name.as_bytes()[..name.len().min(100)];
        block[..short.len()].copy_from_slice(short);
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[108..115].copy_from_slice(b"0001750");
        block[116..123].copy_from_slice(b"0000144");
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[136..147].copy_from_slice(format!("{:011o}", 1_700_000_000 + self.bytes.len()).as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(block);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// An extended header for the next entry.
    pub fn record(&mut self, keyword: &str, value: &[u8]) -> &mut Self {
        let rest = keyword.len() + value.len() + 3;
        let length = (1..9).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
        let text = [format!("{length} {keyword}=").as_bytes(), value, b"\n"].concat();
        self.entry("pax", b'x', 0o644, "", &text)
    }

    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entry(name, b'0', mode, "", content)
    }

    pub fn folder(&mut self, name: &str, mode: u32) -> &mut Self {
        self.entry(&format!("{name}/"), b'5', mode, "", b"")
    }

    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.entry(name, b'2', 0o777, target, b"")
    }

    pub fn hardlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.entry(name, b'1', 0o644, target, b"")
    }

    pub fn device(&mut self, name: &str, kind: u8, major: u32, minor: u32) -> &mut Self {
        self.changed(name, kind, 0o666, "", b"", |block| {
            block[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
            block[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
        })
    }

    /// The archive with its end.
    pub fn finish(&self) -> Vec<u8> {
        [self.bytes.as_slice(), &[0; 1024]].concat()
    }
}

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// OCI layout, layers as they are, gzipped or packed with zstd.
    Oci,
    OciGzip,
    OciZstd,
    /// `docker save` before version 25: folders with `layer.tar`, `manifest.json` behind them.
    Saved,
    /// `podman save`: layers by their digest.
    Podman,
    /// `docker save` since version 25: both at once.
    Both,
}

/// An image.
#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    platform: String,
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Image {
    pub fn new(layers: impl IntoIterator<Item = Layer>) -> Self {
        let layers = layers.into_iter().map(|layer| layer.finish()).collect();
        Self { layers, platform: "linux/amd64".into() }
    }

    pub fn of(mut self, platform: &str) -> Self {
        platform.clone_into(&mut self.platform);
        self
    }

    pub fn config(&self) -> Value {
        let ids: Vec<_> = self.layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
        let mut platform = self.platform.split('/');
        let (os, architecture) = (platform.next(), platform.next());
        let mut config = json!({"os": os, "architecture": architecture, "config": {}, "history": [],
            "rootfs": {"type": "layers", "diff_ids": ids}});
        if let Some(variant) = platform.next() {
            config["variant"] = variant.into();
        }
        config
    }

    /// The blobs, and the descriptor of the manifest among them.
    pub fn blobs(&self, pack: fn(&[u8]) -> Vec<u8>) -> (Vec<Vec<u8>>, Value) {
        let config = self.config().to_string().into_bytes();
        let mut blobs: Vec<_> = self.layers.iter().map(|layer| pack(layer)).collect();
        let layers: Vec<_> = blobs.iter().map(|blob| described(LAYER, blob)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": described("application/vnd.oci.image.config.v1+json", &config)});
        let manifest = manifest.to_string().into_bytes();
        let descriptor = described(MANIFEST, &manifest);
        blobs.extend([config, manifest]);
        (blobs, descriptor)
    }

    pub fn archive(&self, form: Form) -> Vec<u8> {
        self.files(form).archive()
    }

    /// The files of the archive.
    pub fn files(&self, form: Form) -> Files {
        let pack = match form {
            Form::OciGzip => gzip,
            Form::OciZstd => zstd,
            _ => |bytes: &[u8]| bytes.to_vec(),
        };
        let config = self.config().to_string();
        let id = sha256(config.as_bytes());
        let mut files = Files::default();
        let (mut names, mut config_name) = (Vec::new(), format!("{id}.json"));
        match form {
            Form::Saved => {
                for (number, layer) in self.layers.iter().enumerate() {
                    let folder = sha256(format!("{number}").as_bytes());
                    names.push(format!("{folder}/layer.tar"));
                    files.add(&format!("{folder}/VERSION"), b"1.0").add(&format!("{folder}/json"), b"{}");
                    match self.layers.iter().take(number).position(|other| other == layer) {
                        Some(equal) => files.link(&names[number], &format!("../{}", names[equal])),
                        None => files.add(&names[number], layer),
                    };
                }
                files.add(&config_name, config.as_bytes());
            }
            Form::Podman => {
                for layer in &self.layers {
                    let name = format!("{}.tar", sha256(layer));
                    if !names.contains(&name) {
                        files.add(&name, layer);
                    }
                    names.push(name);
                }
                files.add(&config_name, config.as_bytes());
            }
            Form::Both => {
                names = self.layers.iter().map(|layer| format!("blobs/sha256/{}", sha256(layer))).collect();
                config_name = format!("blobs/sha256/{id}");
            }
            _ => {}
        }
        if !matches!(form, Form::Saved | Form::Podman) {
            let (blobs, descriptor) = self.blobs(pack);
            files.layout(blobs, &json!({"schemaVersion": 2, "manifests": [descriptor]}));
        }
        if !names.is_empty() {
            let manifest = json!([{"Config": config_name, "RepoTags": ["disk:1"], "Layers": names}]);
            files.add("manifest.json", manifest.to_string().as_bytes());
        }
        files
    }
}

/// The files of an archive, in order, and links to some of them behind these.
#[derive(Default)]
pub struct Files(pub Vec<(String, Vec<u8>)>, Vec<(String, String)>);

impl Files {
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        self.0.push((name.to_owned(), bytes.to_vec()));
        self
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, target: &str) -> &mut Self {
        self.1.push((name.to_owned(), target.to_owned()));
        self
    }

    /// The OCI layout of these blobs.
    pub fn layout(&mut self, blobs: Vec<Vec<u8>>, index: &Value) -> &mut Self {
        for blob in blobs {
            let name = format!("blobs/sha256/{}", sha256(&blob));
            if self.0.iter().all(|(other, _)| *other != name) {
                self.0.push((name, blob));
            }
        }
        self.add("index.json", index.to_string().as_bytes());
        self.add("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)
    }

    /// The content of the file called so.
    pub fn get(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.0.iter_mut().find(|(other, _)| other == name).unwrap().1
    }

    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Layer::new();
        archive.folder("blobs", 0o755);
        for (name, bytes) in &self.0 {
            archive.file(name, 0o644, bytes);
        }
        for (name, target) in &self.1 {
            archive.symlink(name, target);
        }
        archive.finish()
    }
}

/// An archive of several images, in so many indexes inside of one another.
pub fn index(images: &[&Image], depth: usize) -> Vec<u8> {
    let (mut blobs, mut descriptors) = (Vec::new(), Vec::new());
    for image in images {
        let (more, mut descriptor) = image.blobs(<[u8]>::to_vec);
        let mut platform = image.platform.split('/');
        descriptor["platform"] = json!({"os": platform.next(), "architecture": platform.next()});
        if let Some(variant) = platform.next() {
            descriptor["platform"]["variant"] = variant.into();
        }
        blobs.extend(more);
        descriptors.push(descriptor);
    }
    let mut index = json!({"schemaVersion": 2, "manifests": descriptors});
    for _ in 0..depth {
        let blob = index.to_string().into_bytes();
        index = json!({"schemaVersion": 2, "manifests": [described(INDEX, &blob)]});
        blobs.push(blob);
    }
    let mut files = Files::default();
    files.layout(blobs, &index);
    files.archive()
}

pub fn described(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

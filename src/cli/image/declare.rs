//! What an Image is declared to be: the flags that stand for fields of its spec.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::{Compression, ContainerFormat, Digest, DiskFormat, Subformat},
};

use crate::{
    api::{
        BundleKind, CaBundleRef, Conversion, DeclaredFormat, HttpSource, Image, ImageSpec, SecretRef, Source, Tls,
        UploadSource, identity::SECRET_CA_KEY,
    },
    cli::cluster::{manifest, pair},
};

/// What is declared of every Image, wherever its bytes come from.
#[derive(Args, Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct Declared {
    /// What the bytes as received must hash to, as sha256:HEX; also md5, sha1, sha512 and blake3
    #[arg(long, value_name = "DIGEST")]
    pub checksum: Option<Digest>,
    /// How the disk is laid out; something else is refused [default: what is found]
    #[arg(long, value_name = "FORMAT")]
    disk_format: Option<DiskFormat>,
    /// What must be around it; docker keeps the files of a container image [default: what is found]
    #[arg(long, value_name = "FORMAT")]
    container_format: Option<ContainerFormat>,
    /// Which disk of a container with several, by its file's name or its id [default: the one that boots]
    #[arg(long, value_name = "NAME")]
    container_disk: Option<String>,
    /// The format to store it in [default: what each store prefers]
    #[arg(long, value_name = "FORMAT")]
    convert_to: Option<DiskFormat>,
    /// The variant of that format, by qemu-img's names
    #[arg(long, value_name = "SUBFORMAT", requires = "convert_to")]
    subformat: Option<Subformat>,
    /// Of the clusters of a qcow2: none, zlib or zstd
    #[arg(long, value_name = "COMPRESSION", requires = "convert_to")]
    compression: Option<Compression>,
    /// Size of the clusters of a qcow2, in bytes
    #[arg(long, value_name = "BYTES", requires = "convert_to")]
    cluster_size: Option<i64>,
    /// A store that shall keep it; may be given several times [default: the default store]
    #[arg(long = "store", value_name = "NAME")]
    stores: Vec<String>,
    /// Keep it in every store that is not read-only
    #[arg(long, conflicts_with = "stores")]
    all_stores: bool,
    /// Serve it as soon as one of its stores has it
    #[arg(long)]
    any_store: bool,
    /// Refuse to delete it
    #[arg(long)]
    protected: bool,
    /// Serve its data to nobody yet
    #[arg(long)]
    deactivated: bool,
    /// How many revisions are kept, the current one included [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..=10))]
    history: Option<i64>,
    #[command(flatten)]
    marks: Marks,
}

/// What tells one Image from others.
#[derive(Args, Clone, Debug, Default)]
pub struct Marks {
    /// A property; may be given several times
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = pair)]
    pub properties: Vec<(String, String)>,
    /// A tag; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// A label of Kubernetes; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
}

/// A URL that bytes come from, and how it is asked.
#[derive(Args, Clone, Debug, Default)]
pub struct FromUrl {
    /// The http or https URL that the agents fetch it from
    #[arg(long, value_name = "URL", visible_alias = "uri")]
    pub url: Option<String>,
    /// URL of a checksum file as sha256sum writes it
    #[arg(long, value_name = "URL", requires = "url")]
    checksum_url: Option<String>,
    /// A Secret of the namespace with request headers, for servers that want credentials
    #[arg(long, value_name = "NAME", requires = "url")]
    headers_secret: Option<String>,
    /// Certificate authorities to trust besides the system's: a ConfigMap, or a Secret as secret/NAME; key ca.crt, or NAME:KEY
    #[arg(long, value_name = "NAME", requires = "url", value_parser = bundle)]
    ca_bundle: Option<CaBundleRef>,
    /// Do not check the server's certificate; give a checksum then
    #[arg(long, requires = "url", conflicts_with = "ca_bundle")]
    insecure_skip_verify: bool,
}

/// Whether something is really done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// It is
    #[default]
    None,
    /// The API server checks it and keeps nothing
    Server,
    /// Nobody is asked: with -o yaml, a manifest for git
    Client,
}

impl FromUrl {
    /// The source, if there is a URL.
    fn source(&self, checksum: Option<&Digest>) -> Option<Source> {
        let secure = self.ca_bundle.is_none() && !self.insecure_skip_verify;
        let tls = || Tls { ca_bundle_ref: self.ca_bundle.clone(), insecure_skip_verify: self.insecure_skip_verify };
        let http = HttpSource {
            url: self.url.clone()?,
            headers_secret_ref: self.headers_secret.clone().map(|name| SecretRef { name }),
            tls: (!secure).then(tls),
            checksum: checksum.map(ToString::to_string),
            checksum_url: self.checksum_url.clone(),
        };
        Some(Source { http: Some(http), ..Source::default() })
    }
}

impl Declared {
    /// The Image `name`, whose bytes come from `url`, or from somebody who sends them.
    ///
    /// # Errors
    /// If no Image can be such.
    pub fn image(&self, namespace: &str, name: &str, url: &FromUrl) -> Result<Image> {
        let upload = UploadSource { checksum: self.checksum.as_ref().map(ToString::to_string) };
        let upload = || Source { upload: Some(upload), ..Source::default() };
        let spec = ImageSpec {
            source: url.source(self.checksum.as_ref()).unwrap_or_else(upload),
            disk_format: self.format()?,
            container_format: self.container_format,
            container_disk: self.container_disk.clone(),
            convert_to: self.convert_to.map(|disk_format| Conversion {
                disk_format,
                subformat: self.subformat,
                compression: self.compression,
                cluster_size: self.cluster_size,
            }),
            stores: self.stores.clone(),
            all_stores: self.all_stores,
            require_all_stores: !self.any_store,
            protected: self.protected,
            deactivated: self.deactivated,
            revision_history_limit: self.history.unwrap_or(1),
            properties: self.marks.properties.iter().cloned().collect(),
            tags: self.marks.tags.clone(),
        };
        let mut image = Image::new(name, spec);
        image.metadata.namespace = Some(namespace.to_owned());
        image.metadata.labels = (!self.marks.labels.is_empty()).then(|| self.marks.labels.iter().cloned().collect());
        Ok(image)
    }

    fn format(&self) -> Result<DeclaredFormat> {
        let Some(format) = self.disk_format else { return Ok(DeclaredFormat::Auto) };
        serde_json::from_value(json!(format))
            .map_err(|e| Error::with_source(Kind::InvalidInput, format!("{format} cannot be declared"), e))
    }
}

/// The manifest of an Image as a person would write it: without what is so anyway.
///
/// # Errors
/// None that can happen.
pub fn for_git(image: &Image) -> Result<Value> {
    let mut manifest = manifest(image)?;
    if let Some(spec) = manifest.get_mut("spec").and_then(Value::as_object_mut) {
        leave_out(spec, "diskFormat", &json!("auto"));
        leave_out(spec, "requireAllStores", &json!(true));
        leave_out(spec, "revisionHistoryLimit", &json!(1));
    }
    Ok(manifest)
}

fn leave_out(fields: &mut Map<String, Value>, name: &str, default: &Value) {
    if fields.get(name) == Some(default) {
        fields.remove(name);
    }
}

/// `NAME`, `configmap/NAME:KEY`, `secret/NAME`.
fn bundle(text: &str) -> Result<CaBundleRef, String> {
    let (kind, rest) = match text.split_once('/') {
        None | Some(("configmap", _)) => (BundleKind::ConfigMap, text.strip_prefix("configmap/").unwrap_or(text)),
        Some(("secret", rest)) => (BundleKind::Secret, rest),
        Some((other, _)) => return Err(format!("`{other}` holds no certificates: use configmap/NAME or secret/NAME")),
    };
    let (name, key) = rest.split_once(':').unwrap_or((rest, SECRET_CA_KEY));
    if name.is_empty() || key.is_empty() {
        return Err(format!("`{text}` names nothing: use NAME, secret/NAME or NAME:KEY"));
    }
    Ok(CaBundleRef { kind, name: name.to_owned(), key: key.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        declared: Declared,
        #[command(flatten)]
        url: FromUrl,
    }

    fn manifest_of(line: &[&str]) -> Value {
        let line = Line::try_parse_from(["x"].iter().chain(line)).unwrap();
        for_git(&line.declared.image("team", "a", &line.url).unwrap()).unwrap()
    }

    #[test]
    fn a_manifest_has_what_was_said_and_no_more() {
        let spec =
            manifest_of(&["--url", "https://a/b", "--disk-format", "qcow2", "--property", "os=x"])["spec"].clone();
        let expected = json!({ "source": { "http": { "url": "https://a/b" } }, "diskFormat": "qcow2", "properties": { "os": "x" } });
        assert_eq!(spec, expected);
        let all = manifest_of(&["--all-stores", "--any-store", "--convert-to", "qcow2", "--compression", "zstd"]);
        let expected = json!({
            "source": { "upload": {} }, "allStores": true, "requireAllStores": false,
            "convertTo": { "diskFormat": "qcow2", "compression": "zstd" },
        });
        assert_eq!(all["spec"], expected);
        assert_eq!(all["metadata"], json!({ "name": "a", "namespace": "team" }));
    }

    #[test]
    fn bundles_are_named_by_kind_name_and_key() {
        let of = |text: &str| bundle(text).map(|b| (b.kind, b.name, b.key));
        let plain = |kind, key: &str| Ok((kind, "a".to_owned(), key.to_owned()));
        assert_eq!(of("a"), plain(BundleKind::ConfigMap, "ca.crt"));
        assert_eq!(of("configmap/a:b"), plain(BundleKind::ConfigMap, "b"));
        assert_eq!(of("secret/a"), plain(BundleKind::Secret, "ca.crt"));
        assert!(of("pod/a").is_err() && of("secret/").is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [&["--checksum-url", "x"][..], &["--subformat", "fixed"], &["--store", "a", "--all-stores"]] {
            assert!(Line::try_parse_from(["x"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }
}

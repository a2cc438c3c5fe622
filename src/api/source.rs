//! Where an Image's bytes come from. Each later source is one more optional field and one more word in the rule that exactly one is set.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A digest as `algorithm:hex`, with the right number of digits for each algorithm.
pub const DIGEST_PATTERN: &str = "^(md5:[0-9a-fA-F]{32}|sha1:[0-9a-fA-F]{40}|sha256:[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128}|blake3:[0-9a-fA-F]{64})$";

/// Where the bytes come from: exactly one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.http), has(self.upload)].filter(x, x).size() == 1")
    .message("name exactly one source: http or upload"))]
pub struct Source {
    /// Bytes behind an HTTP or HTTPS URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// Bytes that somebody sends to the data API, at `status.upload.url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadSource>,
}

/// Bytes that somebody sends to the data API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploadSource {
    /// What the bytes as received must hash to, as `sha256:<hex>`; also md5, sha1, sha512 and blake3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DIGEST_PATTERN), length(max = 140))]
    pub checksum: Option<String>,
}

/// Bytes behind a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.tls) || self.url.startsWith('https://')")
    .message("tls is for https URLs; remove it, or use https"))]
pub struct HttpSource {
    /// The URL. Credentials do not belong in it: use headersSecretRef.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
        .message("the URL must begin with http:// or https://"))]
    #[x_kube(validation = Rule::new("!self.matches('^https?://[^/?#]*@')")
        .message("the URL must not hold a user name or password: anybody who may read Images would see it; use headersSecretRef"))]
    pub url: String,
    /// A Secret in the Image's namespace whose keys are names of request headers and whose values are theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_secret_ref: Option<SecretRef>,
    /// How the server's certificate is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// What the bytes as received must hash to, as `sha256:<hex>`; also md5, sha1, sha512 and blake3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DIGEST_PATTERN), length(max = 140))]
    pub checksum: Option<String>,
    /// URL of a checksum file as `sha256sum` writes it; the line that names the URL's last path segment counts. Fetched with the same
    /// headers and certificates as the image.
    #[serde(default, rename = "checksumURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
        .message("the checksum URL must begin with http:// or https://"))]
    #[x_kube(validation = Rule::new("!self.matches('^https?://[^/?#]*@')")
        .message("the checksum URL must not hold a user name or password: use headersSecretRef"))]
    pub checksum_url: Option<String>,
}

/// A Secret by name, in the namespace of the object that names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How a server's certificate is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.caBundleRef) && has(self.insecureSkipVerify) && self.insecureSkipVerify)")
    .message("caBundleRef and insecureSkipVerify exclude each other: either the certificate is checked, or it is not"))]
pub struct Tls {
    /// Certificate authorities to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<CaBundleRef>,
    /// Do not check the certificate at all. A checksum should be given then, for nothing else proves the bytes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub insecure_skip_verify: bool,
}

/// PEM certificates in a ConfigMap or Secret of the Image's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaBundleRef {
    /// What holds it.
    #[serde(default)]
    pub kind: BundleKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in it.
    #[serde(default = "default_bundle_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What may hold certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BundleKind {
    /// A ConfigMap, because certificates are no secret.
    #[default]
    ConfigMap,
    /// A Secret, because cert-manager and others put them there.
    Secret,
}

fn default_bundle_key() -> String {
    super::identity::SECRET_CA_KEY.to_owned()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(super) fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(super) fn is_true(value: &bool) -> bool {
    *value
}

/// The default of what is switched on.
pub(super) fn yes() -> bool {
    true
}

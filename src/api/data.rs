//! The data API's words: what stands on both sides of the wire, between the agents and who asks them for images' bytes.

use http::HeaderName;

/// The path of an Image's data, as routes are written.
pub const ROUTE: &str = "/v1/namespaces/{namespace}/images/{name}/data";
/// Who may download: the verb `get` on this subresource of Images.
pub const DATA: (&str, &str) = ("data", "get");
/// Who may upload.
pub const UPLOAD: (&str, &str) = ("upload", "update");

/// The version of tus that is spoken.
pub const TUS_VERSION: &str = "1.0.0";
/// The type of what tus' PATCH brings.
pub const TUS_TYPE: &str = "application/offset+octet-stream";
/// Which version of tus a request or an answer is of.
pub const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
/// How many bytes were taken.
pub const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// How many there will be.
pub const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
/// That it was not said yet how many there will be.
pub const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");

/// Digest of what the guest sees in what is sent.
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("vitrine-content-digest");
/// How the disk is laid out in it.
pub const DISK_FORMAT: HeaderName = HeaderName::from_static("vitrine-disk-format");
/// Digest of all of its bytes, RFC 9530.
pub const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// The path of the data of the Image `name`.
pub fn path(namespace: &str, name: &str) -> String {
    ROUTE.replace("{namespace}", namespace).replace("{name}", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_of_the_route() {
        assert_eq!(path("team", "debian"), "/v1/namespaces/team/images/debian/data");
    }
}

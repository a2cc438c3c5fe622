//! Uploads in parts that were begun and not completed: what they hold is seen in no listing, and is paid for all the same.
//!
//! The client knows no request that lists them, so it is made here. The same answer tells what time it is at the server.

use jiff::Timestamp;
use object_store::{
    aws::{AwsAuthorizer, AwsCredential},
    client::{HttpError, HttpRequest, HttpRequestBody},
    multipart::MultipartStore as _,
    path::Path,
};

use super::{
    fault::Fault,
    index,
    place::{Place, bucket_url},
};
use crate::error::{Error, Kind, Result};

/// Longest list that is read in one go, in pages of a thousand.
const MAX_PAGES: usize = 1000;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upload {
    pub(super) path: Path,
    id: String,
    /// When it was begun, in seconds since 1970 by the server's clock.
    pub(super) begun: u64,
}

/// Those below a prefix, and when they were listed, in seconds since 1970 by the server's clock.
#[derive(Debug)]
pub(super) struct Uploads {
    pub(super) now: u64,
    pub(super) uploads: Vec<Upload>,
}

/// One page of the list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    uploads: Vec<Upload>,
    /// Key and id where the next page begins.
    next: Option<(String, String)>,
}

/// Lists them. Where that is not allowed there are none, and it is this machine's time.
pub(super) async fn list(place: &Place, prefix: &Path) -> Result<Uploads> {
    let mut found = Uploads { now: index::now(), uploads: Vec::new() };
    let mut next = None;
    for _ in 0..MAX_PAGES {
        let page = match page(place, prefix, next.as_ref()).await {
            Ok((now, page)) => {
                found.now = now.unwrap_or(found.now);
                page
            }
            Err(Fault::NotAllowed) => {
                tracing::info!(store = place.name(), bucket = place.bucket(), "may not list unfinished uploads");
                break;
            }
            Err(fault) => return Err(place.fault(&format!("listing unfinished uploads below {prefix}"), &fault)),
        };
        found.uploads.extend(page.uploads);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    Ok(found)
}

/// Ends one. What is not there is ended already.
pub(super) async fn abort(place: &Place, upload: &Upload) -> Result<()> {
    let doing = format!("aborting the upload of {}", upload.path);
    match place.bounded(&doing, place.client().abort_multipart(&upload.path, &upload.id)).await {
        Ok(()) | Err(Fault::NoObject) => Ok(()),
        Err(fault) => Err(place.fault(&doing, &fault)),
    }
}

async fn page(place: &Place, prefix: &Path, next: Option<&(String, String)>) -> Result<(Option<u64>, Page), Fault> {
    let request = request(place, prefix, next).map_err(|error| Fault::Other(error.to_string()))?;
    let patience = place.options().request_timeout;
    let away = |error: HttpError| Fault::of(&object_store::Error::Generic { store: "S3", source: Box::new(error) });
    let asked = async {
        let answer = place.http().execute(request).await.map_err(away)?;
        let (head, body) = answer.into_parts();
        Ok((head, body.bytes().await.map_err(away)?))
    };
    let late = |_| Fault::Away(format!("not within {} s", patience.as_secs_f32()));
    let (head, body) = tokio::time::timeout(patience, asked).await.map_err(late)??;
    let text = String::from_utf8_lossy(&body);
    if !head.status.is_success() {
        let answer = format!("non-2xx status code: {}: {text}", head.status);
        return Err(Fault::of(&object_store::Error::Generic { store: "S3", source: answer.into() }));
    }
    let date = head.headers.get("date").and_then(|date| date.to_str().ok());
    let now = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| seconds(date.timestamp()));
    Ok((now, parse(&text)))
}

fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or_default()
}

fn request(place: &Place, prefix: &Path, next: Option<&(String, String)>) -> Result<HttpRequest> {
    let options = place.options();
    let mut url = bucket_url(place.name(), options)?;
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("uploads", "");
        if !prefix.as_ref().is_empty() {
            query.append_pair("prefix", &format!("{prefix}/"));
        }
        if let Some((key, id)) = next {
            query.append_pair("key-marker", key).append_pair("upload-id-marker", id);
        }
    }
    let unusable = |error: &dyn std::fmt::Display| Error::new(Kind::Internal, format!("making a request: {error}"));
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.uri_mut() = url.as_str().parse().map_err(|error: http::uri::InvalidUri| unusable(&error))?;
    let credential = AwsCredential {
        key_id: options.access_key_id.clone(),
        secret_key: options.secret_access_key.clone(),
        token: None,
    };
    let authorizer = AwsAuthorizer::new(&credential, "s3", &options.region);
    authorizer.try_authorize(&mut request, None).map_err(|error| unusable(&error))?;
    Ok(request)
}

/// Reads what the server says. The names in it that concern us are those that we gave, in which XML escapes nothing.
fn parse(text: &str) -> Page {
    let uploads = text.split("<Upload>").skip(1).filter_map(|upload| {
        let begun = element(upload, "Initiated").and_then(|time| time.parse().ok()).map_or(0, seconds);
        Some(Upload {
            path: Path::parse(element(upload, "Key")?).ok()?,
            id: element(upload, "UploadId")?.to_owned(),
            begun,
        })
    });
    let next = || Some((element(text, "NextKeyMarker")?.to_owned(), element(text, "NextUploadIdMarker")?.to_owned()));
    let next = if element(text, "IsTruncated") == Some("true") { next() } else { None };
    Page { uploads: uploads.collect(), next }
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let text = "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>b</Bucket><IsTruncated>true</IsTruncated>\
            <NextKeyMarker>.data/x</NextKeyMarker><NextUploadIdMarker>2~9</NextUploadIdMarker>\
            <Upload><Key>.data/x</Key><UploadId>2~9</UploadId><Initiated>1970-01-01T00:01:40.5Z</Initiated></Upload>\
            <Upload><Key>.data/y</Key></Upload></ListMultipartUploadsResult>";
        let page = parse(text);
        let upload = Upload { path: Path::from(".data/x"), id: "2~9".to_owned(), begun: 100 };
        assert_eq!(page, Page { uploads: vec![upload], next: Some((".data/x".to_owned(), "2~9".to_owned())) });
        assert_eq!(parse("<ListMultipartUploadsResult/>"), Page::default());
    }
}

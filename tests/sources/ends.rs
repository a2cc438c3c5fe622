//! How long the file is, and what servers say about it.

use vitrine_engine::{
    error::Kind,
    source::{HttpSource, Source, fetch_checksum},
};
use vitrine_harness::http::{Content, Fault, FaultServer, Route};

use crate::support::{config, content, drain, fail, read, source};

#[tokio::test]
async fn the_length_is_told_and_an_empty_file_is_empty() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()));
    let opened = source(&server, "/a").open().await.unwrap();
    assert_eq!(opened.length, Some(content.len() as u64));
    assert!(opened.ranges.is_some());
    assert!(drain(opened).await.0 == content);
    assert_eq!(server.requests().len(), 1, "one request is enough");
    server.put("/empty", Route::bytes(vec![]));
    assert!(read(&source(&server, "/empty")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_body_shorter_than_promised_is_never_the_whole() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).always(Fault::WrongLength(10)));
    let error = fail(&source(&server, "/a"), &content).await;
    assert!(matches!(error.kind(), Kind::Unavailable | Kind::Changed), "{error}");
    server.put("/once", Route::bytes(content.clone()).first(1, Fault::CutAfter(3_145_727)));
    assert!(read(&source(&server, "/once")).await.unwrap() == content);
}

#[tokio::test]
async fn a_part_that_ends_early_is_not_the_end_of_the_file() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    // The second answer says which part it is, and its body, whose length is unsaid, is over long before that.
    let route = Route::bytes(content.clone()).first(1, Fault::CutAfter(1_000_000));
    server.put("/a", route.only(2, Fault::Chunked).only(2, Fault::EndAfter(100_000)));
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_chunked_body_ends_where_it_says() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).always(Fault::Chunked));
    let opened = source(&server, "/a").open().await.unwrap();
    assert_eq!(opened.length, None);
    let (all, end) = drain(opened).await;
    end.unwrap();
    assert!(all == content);
}

#[tokio::test]
async fn a_cut_chunked_body_is_continued() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let chunked = || Route::bytes(content.clone()).always(Fault::Chunked);
    server.put("/a", chunked().first(1, Fault::CutAfter(1_000_000)));
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    // Everything came but the mark of the end: asking for more says that there is no more.
    server.put("/end", chunked().first(1, Fault::CutAfter(3_145_728)));
    assert!(read(&source(&server, "/end")).await.unwrap() == content);
    server.put("/rangeless", chunked().always(Fault::IgnoreRange).first(1, Fault::CutAfter(1_000_000)));
    assert!(read(&source(&server, "/rangeless")).await.unwrap() == content);
}

#[tokio::test]
async fn an_end_that_cannot_be_told_from_a_cut_is_refused_unless_the_digest_is_known() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).always(Fault::UntilClose));
    let error = source(&server, "/a").open().await.err().unwrap();
    assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("declare a checksum"), "{error}");
    let mut config = config(&server.url("/a"));
    config.accept_unframed = true;
    assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content);
}

#[tokio::test]
async fn a_web_page_is_not_an_image() {
    let server = FaultServer::start().unwrap();
    let page = b"<!DOCTYPE html><title>Log in</title>".to_vec();
    server.put("/a", Route::bytes(page.clone()).header("Content-Type", "text/html"));
    let error = fail(&source(&server, "/a"), &[]).await;
    assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("web page"), "{error}");
    // Neither the type nor the content alone says so.
    server.put("/b", Route::bytes(page.clone()));
    assert!(read(&source(&server, "/b")).await.unwrap() == page);
    server.put("/c", Route::bytes(b"QFI\xfb".to_vec()).header("Content-Type", "text/html"));
    assert!(read(&source(&server, "/c")).await.unwrap() == b"QFI\xfb");
}

#[tokio::test]
async fn an_encoding_nobody_asked_for_is_refused() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a.qcow2", Route::bytes(content.clone()).header("Content-Encoding", "gzip"));
    let error = fail(&source(&server, "/a.qcow2"), &content).await;
    assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("encoded as `gzip`"), "{error}");
    server.put("/a.raw.gz", Route::bytes(content.clone()).header("Content-Encoding", "x-gzip"));
    assert!(read(&source(&server, "/a.raw.gz")).await.unwrap() == content);
}

#[tokio::test]
async fn statuses_tell_what_can_be_done() {
    let server = FaultServer::start().unwrap();
    for (status, kind, tries) in [
        (401, Kind::Denied, 1),
        (403, Kind::Denied, 1),
        (404, Kind::NotFound, 1),
        (410, Kind::NotFound, 1),
        (204, Kind::InvalidInput, 1),
        (400, Kind::InvalidInput, 1),
        (429, Kind::Unavailable, 4),
        (500, Kind::Unavailable, 4),
        (503, Kind::Unavailable, 4),
    ] {
        let path = format!("/{status}");
        server.put(&path, Route::status(status));
        let error = source(&server, &path).open().await.err().unwrap();
        assert_eq!(error.kind(), kind, "{status}: {error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!(server.requests_for(&path).len(), tries, "{status}");
    }
}

#[tokio::test]
async fn ranges_are_of_the_version_that_was_opened() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).only(3, Fault::CutAfter(10_000)));
    let opened = source(&server, "/a").open().await.unwrap();
    let ranges = opened.ranges.as_ref().unwrap();
    let read = async |offset, length| ranges.read_range(offset, length).await.unwrap().unwrap();
    assert_eq!(read(1_000_000, 5).await, &content[1_000_000..1_000_005]);
    assert_eq!(read(2_000_000, 100_000).await, &content[2_000_000..2_100_000], "over a cut");
    assert_eq!(read(3_145_000, 728).await, &content[3_145_000..]);
    assert_eq!(read(0, 0).await.len(), 0);
    assert_eq!(ranges.read_range(3_145_000, 729).await.unwrap_err().kind(), Kind::InvalidInput);
    server.put("/a", Route::content(Content::bytes(crate::support::altered(&content))));
    assert_eq!(ranges.read_range(0, 5).await.unwrap_err().kind(), Kind::Changed);
    server.put("/a", Route::bytes(content.clone()).always(Fault::IgnoreRange));
    assert_eq!(ranges.read_range(5, 5).await.unwrap(), None, "who only claims to have ranges has none");
}

#[tokio::test]
async fn a_checksum_file_is_fetched_and_read() {
    let server = FaultServer::start().unwrap();
    let hash = "0123456789abcdef".repeat(4);
    server.put("/SHA256SUMS", Route::bytes(format!("{hash}  my image.qcow2\n").into_bytes()).always(Fault::UntilClose));
    let fetch = |name: &'static str| fetch_checksum(config(&server.url("/SHA256SUMS")), name);
    assert_eq!(fetch("my image.qcow2").await.unwrap().to_string(), format!("sha256:{hash}"));
    let error = fetch("other.qcow2").await.unwrap_err();
    assert!(
        error.kind() == Kind::NotFound && error.to_string().contains("no entry for `other.qcow2` among 1 entries"),
        "{error}"
    );
    server.put("/SHA256SUMS", Route::bytes(vec![b'x'; (1 << 20) + 1]));
    let error = fetch("my image.qcow2").await.unwrap_err();
    assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("longer than 1048576 bytes"), "{error}");
}

//! Cuts, stalls and changes in the middle.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    time::{Duration, Instant, SystemTime},
};

use vitrine_engine::{error::Kind, source::Source};
use vitrine_harness::http::{Content, Fault, FaultServer, Route};

use crate::support::{altered, config, content, drain, fail, read, source};

#[tokio::test]
async fn a_cut_is_continued_where_it_was() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).first(2, Fault::CutAfter(1_000_000)));
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    let requests = server.requests();
    let ranges: Vec<_> = requests.iter().map(vitrine_harness::http::Request::range).collect();
    assert_eq!(ranges, [None, Some("bytes=1000000-"), Some("bytes=2000000-")]);
    assert!(requests[1].header("if-range").is_some(), "the version is pinned");
    assert!(requests.iter().all(|r| r.header("accept-encoding") == Some("identity")));
}

#[tokio::test]
async fn a_stall_is_left_and_continued() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).first(1, Fault::StallAfter(1_000_000)));
    let begun = Instant::now();
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(server.requests()[1].range(), Some("bytes=1000000-"));
}

#[tokio::test]
async fn a_server_that_always_stalls_is_given_up() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).always(Fault::StallAfter(0)));
    let begun = Instant::now();
    let error = fail(&source(&server, "/a"), &content).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.to_string().contains("gave up after 4 tries") && error.to_string().contains("no byte came for 0.3 s"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let server = FaultServer::start().unwrap();
    server.put("/a", Route::bytes(content()).always(Fault::Delay(Duration::from_mins(1))));
    let mut config = config(&server.url("/a"));
    config.patience.connect = Duration::from_millis(100);
    config.patience.attempts = 2;
    let error = vitrine_engine::source::HttpSource::new(config).unwrap().open().await.err().unwrap();
    assert!(error.kind() == Kind::Unavailable && error.to_string().contains("no answer within 0.4 s"), "{error}");
}

#[tokio::test]
async fn a_server_that_comes_back_is_waited_for() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).first(2, Fault::HangUp).only(3, Fault::Status(502)));
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).first(1, Fault::Unavailable(Some(1))));
    let begun = Instant::now();
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    server.put("/a", Route::bytes(content.clone()).always(Fault::Unavailable(Some(3600))));
    let error = fail(&source(&server, "/a"), &content).await;
    assert!(error.kind() == Kind::Unavailable && error.to_string().contains("3600 s"), "{error}");
}

#[tokio::test]
async fn without_ranges_it_is_read_again_and_left_out() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let route = Route::bytes(content.clone()).always(Fault::IgnoreRange);
    server.put("/a", route.first(2, Fault::CutAfter(1_500_000)));
    let opened = source(&server, "/a").open().await.unwrap();
    assert!(opened.ranges.is_none(), "the server offers none");
    let (all, end) = drain(opened).await;
    end.unwrap();
    assert!(all == content);
}

#[tokio::test]
async fn without_validators_the_bytes_themselves_are_the_proof() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let nameless = |bytes: &[u8]| Content::bytes(bytes).etag(None).last_modified(None);
    server.put("/same", Route::content(nameless(&content)).first(2, Fault::CutAfter(1_500_000)));
    assert!(read(&source(&server, "/same")).await.unwrap() == content);
    assert!(server.requests().iter().all(|r| r.range().is_none()), "a range could be of another version");

    let mut other = content.clone();
    other[1_499_999] ^= 1;
    let route = Route::content(nameless(&content)).first(1, Fault::CutAfter(1_500_000));
    server.put("/other", route.from(2, Fault::Replace(nameless(&other))));
    let error = fail(&source(&server, "/other"), &content).await;
    assert!(error.kind() == Kind::Changed && error.to_string().contains("first 1500000 bytes differ"), "{error}");
}

#[tokio::test]
async fn a_weak_etag_proves_nothing() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let weak = Content::bytes(content.clone()).etag(Some("W/\"a\"")).last_modified(None);
    server.put("/a", Route::content(weak).first(1, Fault::CutAfter(1_500_000)));
    let opened = source(&server, "/a").open().await.unwrap();
    assert!(opened.ranges.is_none());
    assert!(drain(opened).await.0 == content);
    assert!(server.requests().iter().all(|r| r.range().is_none()));
}

#[tokio::test]
async fn an_old_modification_time_is_as_good_as_an_etag() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let dated = Content::bytes(content.clone()).etag(None).last_modified(Some(old));
    let route = Route::content(dated).header("Date", "Mon, 07 Nov 1994 08:49:37 GMT");
    server.put("/a", route.first(1, Fault::CutAfter(1_500_000)));
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    assert_eq!(server.requests()[1].header("if-range"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
}

#[tokio::test]
async fn a_file_that_changed_is_never_mixed() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let other = Content::bytes(altered(&content));
    // The new file comes whole with a 200 (If-Range failed), or in part from a server that ignores If-Range.
    let cut = Route::bytes(content.clone()).first(1, Fault::CutAfter(1_000_000));
    server.put("/whole", cut.clone().from(2, Fault::Replace(other.clone())));
    let careless = Content::bytes(content.clone()).etag(Some("\"old\"")).last_modified(None);
    let replaced = Content::bytes(content[..3_000_000].to_vec()).etag(Some("\"old\"")).last_modified(None);
    let cut = Route::content(careless).first(1, Fault::CutAfter(1_000_000));
    server.put("/shorter", cut.from(2, Fault::Replace(replaced)));
    let error = fail(&source(&server, "/whole"), &content).await;
    assert!(error.kind() == Kind::Changed && error.to_string().contains("ETag was"), "{error}");
    let error = fail(&source(&server, "/shorter"), &content).await;
    assert!(
        error.kind() == Kind::Changed && error.to_string().contains("its length was 3145728 and is 3000000 now"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_cut_below_what_was_read_is_changed() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let named = |length: usize| Content::bytes(content[..length].to_vec()).etag(Some("\"same\"")).last_modified(None);
    let route = Route::content(named(content.len())).first(1, Fault::CutAfter(2_000_000));
    server.put("/a", route.from(2, Fault::Replace(named(1_000_000))));
    let error = fail(&source(&server, "/a"), &content).await;
    assert!(error.kind() == Kind::Changed && error.to_string().contains("1000000 bytes now"), "{error}");
}

#[tokio::test]
async fn wrong_ranges_are_noticed_and_named() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let cut = Route::bytes(content.clone()).first(1, Fault::CutAfter(1_000_000));
    server.put("/start", cut.clone().from(2, Fault::WrongContentRange(-1000)));
    let error = fail(&source(&server, "/start"), &content).await;
    let text = error.to_string();
    assert!(error.kind() == Kind::Unavailable, "{text}");
    assert!(text.contains("bytes=1000000-") && text.contains("bytes 999000-3144727/3145728"), "{text}");
    server.put("/length", cut.from(2, Fault::WrongLength(500)));
    let error = fail(&source(&server, "/length"), &content).await;
    assert!(error.to_string().contains("a body of 2146228 bytes"), "{error}");
}

#[tokio::test]
async fn one_wrong_answer_is_survived() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    let cut = Route::bytes(content.clone()).first(1, Fault::CutAfter(1_000_000));
    server.put("/a", cut.only(2, Fault::WrongContentRange(7)));
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
}

#[tokio::test]
async fn many_cuts_are_survived_while_there_is_progress() {
    let (server, content) = (FaultServer::start().unwrap(), crate::support::content_of(12 << 20));
    server.put("/a", Route::bytes(content.clone()).always(Fault::CutAfter(1_200_000)));
    assert!(read(&source(&server, "/a")).await.unwrap() == content);
    assert!(server.requests().len() > 8);
    server.put("/b", Route::bytes(content.clone()).always(Fault::CutAfter(1000)));
    let error = fail(&source(&server, "/b"), &content).await;
    assert!(error.to_string().contains("gave up after 4 tries"), "{error}");
}

#[tokio::test]
async fn a_server_that_drips_is_given_up() {
    let (server, content) = (FaultServer::start().unwrap(), content());
    server.put("/a", Route::bytes(content.clone()).always(Fault::Rate(100)));
    let mut config = config(&server.url("/a"));
    config.patience.attempts = 2;
    let begun = Instant::now();
    let error = fail(&vitrine_engine::source::HttpSource::new(config).unwrap(), &content).await;
    assert!(error.kind() == Kind::Unavailable && error.to_string().contains("bytes came in 1."), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_mirror_that_is_gone_is_left_for_another() {
    let (front, gone, other) =
        (FaultServer::start().unwrap(), FaultServer::start().unwrap(), FaultServer::start().unwrap());
    let content = content();
    gone.put("/a", Route::bytes(content.clone()).first(1, Fault::CutAfter(1_000_000)).from(2, Fault::HangUp));
    other.put("/a", Route::bytes(content.clone()));
    front.put("/a", Route::redirect(other.url("/a")).first(1, Fault::Redirect(gone.url("/a"))));
    assert!(read(&source(&front, "/a")).await.unwrap() == content);
    assert_eq!((gone.requests().len(), front.requests().len(), other.requests().len()), (3, 2, 1));
    assert_eq!(other.requests()[0].range(), Some("bytes=1000000-"));
}

/// A server that gives these answers, one for each connection, and the last for all that follow.
fn scripted(answers: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, connection) in listener.incoming().enumerate() {
            let Ok(mut stream) = connection else { return };
            // What goes wrong with a connection is for the other side to notice.
            let _asked = stream.read(&mut [0; 4096]);
            let _sent = stream.write_all(answers[number.min(answers.len() - 1)].as_bytes());
        }
    });
    url
}

/// The beginning of an answer with ten bytes, cut after five.
const CUT: &str = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\nContent-Length: 10\r\n\r\n01234";

#[tokio::test]
async fn more_than_was_promised_is_noticed() {
    let part = "HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\nContent-Range: bytes 5-9/10\r\n";
    let more = format!("{part}Transfer-Encoding: chunked\r\n\r\n7\r\n56789ab\r\n0\r\n\r\n");
    let source = vitrine_engine::source::HttpSource::new(config(&scripted(vec![CUT.into(), more]))).unwrap();
    let error = fail(&source, b"0123456789").await;
    assert!(
        error.kind() == Kind::Unavailable && error.to_string().contains("sent more than the bytes up to 10"),
        "{error}"
    );
}

#[tokio::test]
async fn a_part_without_the_etag_of_the_whole_is_not_taken() {
    let part = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n";
    let (without, with) = (format!("{part}\r\nABCDE"), format!("{part}ETag: \"a\"\r\n\r\n56789"));
    let source = |answers| vitrine_engine::source::HttpSource::new(config(&scripted(answers))).unwrap();
    assert_eq!(read(&source(vec![CUT.into(), without.clone(), with])).await.unwrap(), b"0123456789");
    let error = fail(&source(vec![CUT.into(), without]), b"0123456789").await;
    assert!(error.kind() == Kind::Unavailable && error.to_string().contains("without the ETag"), "{error}");
}

//! The HTTP server is right when it should be, and wrong exactly as it was told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vitrine_harness::pki::Authority;
use vitrine_harness::{Content, Fault, FaultServer, ForwardProxy, Route};

/// An answer as a simple client sees it; `body` is whatever came until the connection closed.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        Self { status, head: head.to_ascii_lowercase(), body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn ask(address: SocketAddr, method: &str, target: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n{headers}\r\n").expect("send");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("receive");
    Answer::parse(&bytes)
}

fn get(server: &FaultServer, path: &str, headers: &str) -> Answer {
    ask(server.address(), "GET", path, headers)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).expect("small")).collect()
}

fn server_with(route: Route) -> FaultServer {
    let server = FaultServer::start().expect("start");
    server.put("/disk", route);
    server
}

#[test]
fn ranges_and_preconditions_are_as_rfc_9110_has_them() {
    let bytes = pattern(1000);
    let server = server_with(Route::content(Content::bytes(bytes.clone()).etag(Some("\"one\""))));
    let whole = get(&server, "/disk?x=1", "");
    assert_eq!((whole.status, whole.body.len(), whole.header("accept-ranges")), (200, 1000, Some("bytes")));
    for (range, first, last) in [("10-19", 10, 19), ("990-", 990, 999), ("-5", 995, 999), ("990-2000", 990, 999)] {
        let part = get(&server, "/disk", &format!("Range: bytes={range}\r\nIf-Range: \"one\"\r\n"));
        assert_eq!((part.status, &part.body[..]), (206, &bytes[first..=last]), "{range}");
        assert_eq!(part.header("content-range"), Some(format!("bytes {first}-{last}/1000").as_str()));
    }
    assert_eq!(get(&server, "/disk", "Range: bytes=0-1\r\nIf-Range: \"two\"\r\n").status, 200);
    let beyond = get(&server, "/disk", "Range: bytes=1000-\r\n");
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */1000")));
    assert_eq!(get(&server, "/disk", "If-Match: \"two\"\r\n").status, 412);
    assert_eq!(get(&server, "/disk", "If-None-Match: \"one\"\r\n").status, 304);
    assert_eq!(get(&server, "/else", "").status, 404);
    let head = ask(server.address(), "HEAD", "/disk", "");
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("1000"), 0));
    assert_eq!(server.requests_for("/disk").len(), 10);
    assert_eq!(server.requests()[1].range(), Some("bytes=10-19"));
    assert_eq!(server.requests()[1].sent(), 10);
}

#[test]
fn connections_are_cut_as_often_as_told() {
    let server = server_with(Route::bytes(pattern(1_000_000)).first(2, Fault::CutAfter(300_000)));
    let lengths: Vec<usize> = (0..3).map(|_| get(&server, "/disk", "").body.len()).collect();
    assert_eq!(lengths, [300_000, 300_000, 1_000_000]);
    assert_eq!(server.sent("/disk"), 1_600_000);
}

#[test]
fn a_stalled_answer_keeps_the_connection_open() {
    let server = server_with(Route::bytes(pattern(5000)).always(Fault::StallAfter(4000)));
    let mut stream = TcpStream::connect(server.address()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
    write!(stream, "GET /disk HTTP/1.1\r\n\r\n").expect("send");
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).expect_err("no end in sight");
    assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");
    assert_eq!(Answer::parse(&bytes).body.len(), 4000);
}

#[test]
fn lies_about_ranges_and_lengths_are_told() {
    let bytes = pattern(1000);
    let range = "Range: bytes=100-199\r\n";
    let ask_with = |fault| get(&server_with(Route::bytes(bytes.clone()).always(fault)), "/disk", range);

    let ignored = ask_with(Fault::IgnoreRange);
    assert_eq!((ignored.status, ignored.body.len(), ignored.header("accept-ranges")), (200, 1000, None));
    let misnamed = ask_with(Fault::WrongContentRange(50));
    assert_eq!((misnamed.header("content-range"), &misnamed.body[..]), (Some("bytes 150-249/1000"), &bytes[100..200]));
    let misplaced = ask_with(Fault::WrongOffset(-50));
    assert_eq!((misplaced.header("content-range"), &misplaced.body[..]), (Some("bytes 100-199/1000"), &bytes[50..150]));
    for (lie, said) in [(10, "110"), (-10, "90")] {
        let answer = ask_with(Fault::WrongLength(lie));
        assert_eq!((answer.header("content-length"), answer.body.len()), (Some(said), 100));
    }
    let unsaid = ask_with(Fault::UntilClose);
    assert_eq!(
        (unsaid.header("content-length"), unsaid.header("transfer-encoding"), unsaid.body.len()),
        (None, None, 100)
    );
    let chunked = ask_with(Fault::Chunked);
    assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
    assert_eq!(chunked.body, [b"64\r\n", &bytes[100..200], b"\r\n0\r\n\r\n"].concat());
}

#[test]
fn refusals_come_as_told_and_end_as_told() {
    let server = FaultServer::start().expect("start");
    server.put("/busy", Route::bytes(*b"x").first(1, Fault::Unavailable(Some(7))).only(2, Fault::HangUp));
    let busy = get(&server, "/busy", "");
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("7")));
    let mut stream = TcpStream::connect(server.address()).expect("connect");
    write!(stream, "GET /busy HTTP/1.1\r\n\r\n").expect("send");
    assert_eq!(stream.read(&mut [0; 100]).expect("closed in order"), 0);
    assert_eq!(get(&server, "/busy", "").status, 200);

    server.put("/secret", Route::bytes(*b"x").require_header("Authorization", "Bearer abc"));
    assert_eq!(get(&server, "/secret", "").status, 401);
    assert_eq!(get(&server, "/secret", "authorization: Bearer abc\r\n").status, 200);
    server.put("/moved", Route::redirect("http://elsewhere.test/x"));
    assert_eq!(get(&server, "/moved", "").header("location"), Some("http://elsewhere.test/x"));
    server.put("/round", Route::redirect_loop());
    assert_eq!(get(&server, "/round", "").header("location"), Some("/round"));
    server.put("/headless", Route::bytes(*b"x").always(Fault::RefuseHead));
    assert_eq!(ask(server.address(), "HEAD", "/headless", "").status, 405);
    assert_eq!(get(&server, "/headless", "").status, 200);
}

#[test]
fn content_changes_under_the_reader() {
    let server = server_with(Route::bytes(pattern(100)).from(3, Fault::Replace(Content::bytes(pattern(200)))));
    let seen: Vec<Answer> = (0..4).map(|_| get(&server, "/disk", "")).collect();
    assert_eq!(seen.iter().map(|answer| answer.body.len()).collect::<Vec<_>>(), [100, 100, 200, 200]);
    assert_eq!(seen[0].header("etag"), seen[1].header("etag"));
    assert_ne!(seen[1].header("etag"), seen[2].header("etag"));
}

#[test]
fn a_limited_rate_is_kept_and_a_server_that_is_down_answers_nobody() {
    let server = server_with(Route::bytes(pattern(100_000)).always(Fault::Rate(400_000)));
    let start = Instant::now();
    assert_eq!(get(&server, "/disk", "").body.len(), 100_000);
    assert!(start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
    server.set_down(true);
    let mut stream = TcpStream::connect(server.address()).expect("connect");
    write!(stream, "GET /disk HTTP/1.1\r\n\r\n").expect("send");
    assert_eq!(stream.read(&mut [0; 100]).expect("closed in order"), 0);
    server.set_down(false);
    assert_eq!(get(&server, "/disk", "Range: bytes=0-0\r\n").status, 206);
}

#[test]
fn a_folder_is_served_and_nothing_above_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = pattern(3_000_000);
    std::fs::create_dir(folder.path().join("inner")).expect("make");
    std::fs::write(folder.path().join("secret"), b"x").expect("write");
    std::fs::write(folder.path().join("inner/disk"), &bytes).expect("write");
    let server = FaultServer::serve_folder(&folder.path().join("inner"), 0).expect("start");
    assert!(get(&server, "/disk", "").body == bytes);
    assert!(get(&server, "/disk", "Range: bytes=1000000-\r\n").body == bytes[1_000_000..]);
    for outside in ["/../secret", "//../secret", "/", "/absent"] {
        assert_eq!(get(&server, outside, "").status, 404, "{outside}");
    }
}

#[tokio::test]
async fn tls_is_trusted_by_those_who_trust_its_authority() {
    let authority = Authority::new("tests").expect("an authority");
    let server = FaultServer::start_tls(&authority).expect("start");
    server.put("/disk", Route::bytes(pattern(600_000)));
    assert!(server.url("/disk").starts_with("https://127.0.0.1:"));
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let handshake = async |authority: &Authority| {
        let config = authority.client_config(None).expect("a configuration");
        let stream = tokio::net::TcpStream::connect(server.address()).await.expect("connect");
        tokio_rustls::TlsConnector::from(Arc::clone(&config)).connect(name.clone(), stream).await
    };
    let mut stream = handshake(&authority).await.expect("trusted");
    stream.write_all(b"GET /disk HTTP/1.1\r\nConnection: close\r\n\r\n").await.expect("send");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("closed in order");
    assert!(Answer::parse(&bytes).body == pattern(600_000));
    handshake(&Authority::new("others").expect("an authority")).await.expect_err("not trusted");
}

#[test]
fn a_proxy_passes_on_and_counts() {
    let server = server_with(Route::bytes(pattern(500_000)));
    let proxy = ForwardProxy::start().expect("start");
    let address: SocketAddr = proxy.url().strip_prefix("http://").expect("a URL").parse().expect("an address");
    let answer = ask(address, "GET", &server.url("/disk"), "Range: bytes=5-9\r\n");
    assert_eq!((answer.status, &answer.body[..]), (206, &[5, 6, 7, 8, 9][..]));

    let mut tunnel = TcpStream::connect(address).expect("connect");
    write!(tunnel, "CONNECT {} HTTP/1.1\r\n\r\n", server.address()).expect("send");
    let mut begun = [0; 26];
    tunnel.read_exact(&mut begun).expect("receive");
    assert_eq!(&begun, b"HTTP/1.1 200 Connected\r\n\r\n");
    write!(tunnel, "GET /disk HTTP/1.1\r\nConnection: close\r\n\r\n").expect("send");
    let mut bytes = Vec::new();
    tunnel.read_to_end(&mut bytes).expect("receive");
    assert_eq!(Answer::parse(&bytes).body.len(), 500_000);
    let seen: Vec<String> = proxy.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(seen, ["GET", "CONNECT"]);
}

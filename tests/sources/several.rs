//! Several ranges at once.

use std::time::{Duration, Instant};

use vitrine_engine::{
    error::Kind,
    source::{HttpConfig, HttpSource, Parallel},
};
use vitrine_harness::http::{Content, Fault, FaultServer, Route};

use crate::support::{altered, config, content_of, fail, read};

const LENGTH: usize = 4_000_000;

/// Splits after 100 kB if the server is slower than 100 MB/s, into ranges of 250 kB.
fn eager(server: &FaultServer) -> HttpConfig {
    let mut config = config(&server.url("/a"));
    config.parallel = Parallel { ranges: 4, segment: 250_000, trial: 100_000, fast_enough: 100_000_000 };
    config
}

#[tokio::test]
async fn a_slow_connection_becomes_several() {
    let (server, content) = (FaultServer::start().unwrap(), content_of(LENGTH));
    let timed = async |ranges| {
        // Its blocks and the pauses between them take a second over one connection.
        server.put("/a", Route::bytes(content.clone()).always(Fault::Rate(4_000_000)));
        let mut config = eager(&server);
        config.parallel.ranges = ranges;
        // A pause of a busy machine is no stall here.
        config.patience.stall = Duration::from_secs(5);
        let begun = Instant::now();
        assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content);
        begun.elapsed()
    };
    let one = timed(1).await;
    assert_eq!((server.peak_concurrency(), server.requests().len()), (1, 1));
    let four = timed(4).await;
    assert!(four < one.mul_f64(0.7), "{four:?} with four and {one:?} with one");
    let peak = server.peak_concurrency();
    assert!((4..=5).contains(&peak), "{peak} at once; the one given up may still be on its way");
    let requests = server.requests();
    assert!(requests[2..].iter().all(|r| r.range().is_some() && r.header("if-range").is_some()));
}

#[tokio::test]
async fn a_fast_connection_stays_one() {
    let (server, content) = (FaultServer::start().unwrap(), content_of(LENGTH));
    server.put("/a", Route::bytes(content.clone()));
    let mut config = eager(&server);
    config.parallel.fast_enough = 1_000_000;
    assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_fast_connection_that_was_cut_stays_one() {
    let (server, content) = (FaultServer::start().unwrap(), content_of(LENGTH));
    server.put("/a", Route::bytes(content.clone()).first(1, Fault::CutAfter(1_000_000)));
    let mut config = eager(&server);
    config.parallel.fast_enough = 3_000_000;
    config.patience.first_wait = Duration::from_millis(500);
    config.patience.longest_wait = Duration::from_millis(500);
    assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn faults_of_single_ranges_are_survived() {
    let (server, content) = (FaultServer::start().unwrap(), content_of(LENGTH));
    let route = Route::bytes(content.clone()).always(Fault::Rate(4_000_000)).only(2, Fault::CutAfter(10_000));
    let route =
        route.only(3, Fault::StallAfter(10_000)).only(4, Fault::Status(503)).only(5, Fault::WrongContentRange(1));
    server.put("/a", route);
    assert!(read(&HttpSource::new(eager(&server)).unwrap()).await.unwrap() == content);
}

#[tokio::test]
async fn a_server_that_only_claims_ranges_is_read_by_one() {
    let (server, content) = (FaultServer::start().unwrap(), content_of(LENGTH));
    let slow = Route::bytes(content.clone()).first(1, Fault::Rate(4_000_000));
    server.put("/a", slow.from(2, Fault::IgnoreRange));
    assert!(read(&HttpSource::new(eager(&server)).unwrap()).await.unwrap() == content);
    assert!(server.requests().len() <= 6, "the file is not read once for each range");
}

#[tokio::test]
async fn a_change_between_ranges_is_noticed() {
    let (server, content) = (FaultServer::start().unwrap(), content_of(LENGTH));
    let slow = Route::bytes(content.clone()).always(Fault::Rate(4_000_000));
    server.put("/a", slow.from(6, Fault::Replace(Content::bytes(altered(&content)))));
    let error = fail(&HttpSource::new(eager(&server)).unwrap(), &content).await;
    assert_eq!(error.kind(), Kind::Changed, "{error}");
}

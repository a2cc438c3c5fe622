//! What the tests share: content, a source with short patience, reading it to the end.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use vitrine_engine::{
    error::Error,
    source::{AddressPolicy, HttpConfig, HttpSource, Opened, Parallel, Patience, Source},
};
use vitrine_harness::http::FaultServer;

/// 3 MiB that differ at every place: long enough for several pieces and for progress to count.
pub fn content() -> Vec<u8> {
    content_of(3 << 20)
}

pub fn content_of(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes: Vec<u8> = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A policy that lets tests reach their servers.
pub fn loopback_allowed() -> AddressPolicy {
    serde_json::from_str(r#"{"allow": [{"networks": ["127.0.0.0/8", "::1/128"]}]}"#).unwrap()
}

/// A source with little patience, so that tests are quick.
pub fn config(url: &str) -> HttpConfig {
    let mut config = HttpConfig::new(url.parse().unwrap());
    config.policy = Arc::new(loopback_allowed());
    config.patience = Patience {
        connect: Duration::from_secs(2),
        stall: Duration::from_millis(300),
        progress: 1000,
        progress_time: Duration::from_secs(1),
        attempts: 4,
        first_wait: Duration::from_millis(2),
        longest_wait: Duration::from_millis(10),
        longest_retry_after: Duration::from_secs(2),
    };
    config.parallel = Parallel { ranges: 1, ..Parallel::default() };
    config
}

/// A server and a source for `path` on it.
pub fn source(server: &FaultServer, path: &str) -> HttpSource {
    HttpSource::new(config(&server.url(path))).unwrap()
}

/// All bytes, or the error that ends them; and how many came before it.
pub async fn drain(opened: Opened) -> (Vec<u8>, Result<(), Error>) {
    let mut stream = opened.stream;
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => all.extend_from_slice(&piece),
            Err(error) => return (all, Err(error)),
        }
    }
    (all, Ok(()))
}

pub async fn read(source: &HttpSource) -> Result<Vec<u8>, Error> {
    let (all, end) = drain(source.open().await?).await;
    end.map(|()| all)
}

/// The error of a read that must fail; `wanted` is what must have come before it at most.
pub async fn fail(source: &HttpSource, wanted: &[u8]) -> Error {
    match source.open().await {
        Err(error) => error,
        Ok(opened) => {
            let (all, end) = drain(opened).await;
            assert!(wanted.starts_with(&all), "wrong bytes were delivered before the error");
            end.expect_err("the read must fail")
        }
    }
}

/// A version of `content` with its last byte changed.
pub fn altered(content: &[u8]) -> Vec<u8> {
    let mut other = content.to_vec();
    *other.last_mut().unwrap() ^= 1;
    other
}

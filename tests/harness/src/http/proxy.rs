//! A forward proxy that passes everything on and counts: `CONNECT host:port`, and `GET http://host:port/path`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::request::{self, Request};
use super::serve::{bind, held, listen};
use crate::error::Result;

/// A running proxy on 127.0.0.1. Dropping it cuts its connections.
#[derive(Debug)]
pub struct ForwardProxy {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    runtime: Option<Runtime>,
}

impl ForwardProxy {
    /// Starts a proxy on a free port.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start() -> Result<Self> {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (runtime, address) = listen(bind(0)?, {
            let requests = Arc::clone(&requests);
            move |stream| relay(Arc::clone(&requests), stream)
        })?;
        Ok(Self { address, requests, runtime: Some(runtime) })
    }

    /// What `HTTP_PROXY` and `HTTPS_PROXY` are set to.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far: of a tunnel only its `CONNECT` is seen.
    pub fn requests(&self) -> Vec<Request> {
        held(&self.requests).clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One request per connection; the bytes after it flow both ways until either side ends.
async fn relay(requests: Arc<Mutex<Vec<Request>>>, mut client: TcpStream) {
    let mut buffer = Vec::new();
    let Some(request) = request::next(&mut client, &mut buffer).await else { return };
    held(&requests).push(request.clone());
    let Some((host, forwarded)) = destination(&request) else {
        let _gone = client.write_all(b"HTTP/1.1 400 Not a proxy request\r\nContent-Length: 0\r\n\r\n").await;
        return;
    };
    let Ok(mut server) = TcpStream::connect(host).await else {
        let _gone =
            client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        return;
    };
    let begun = match forwarded {
        None => client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await,
        Some(head) => server.write_all(head.as_bytes()).await,
    };
    if begun.is_ok() && server.write_all(&buffer).await.is_ok() {
        // Either side may end as it likes.
        let _ended = copy_bidirectional(&mut client, &mut server).await;
    }
}

/// Where to connect, and the request to send there unless it is a tunnel that was asked for.
fn destination(request: &Request) -> Option<(&str, Option<String>)> {
    if request.method == "CONNECT" {
        return Some((&request.target, None));
    }
    let rest = request.target.strip_prefix("http://")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let kept = request.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "connection" | "proxy-connection"));
    let lines: String = kept.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    // One answer per connection, so that a next request comes to us and is counted.
    Some((host, Some(format!("{} {path} HTTP/1.1\r\n{lines}connection: close\r\n\r\n", request.method))))
}

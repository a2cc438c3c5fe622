//! The two questions that starting a control plane asks of its API server. A test that talks to it in earnest has a real client.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::{Context, Error, Result};
use crate::network::Network;

/// A starting server may accept and not answer; then the next attempt shall have its turn.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

pub struct Api {
    port: u16,
    tls: Arc<ClientConfig>,
    network: Option<Network>,
}

impl Api {
    /// The API server at `port` of this machine's loopback, or of that of `network`.
    pub fn new(port: u16, tls: Arc<ClientConfig>, network: Option<Network>) -> Self {
        Self { port, tls, network }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Asks for `path` and returns the status and the whole answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        tokio::time::timeout(ANSWER_DEADLINE, self.ask(path))
            .await
            .context(|| format!("no answer from {}{path}", self.url()))?
    }

    async fn connect(&self) -> Result<TcpStream> {
        let address = (Ipv4Addr::LOCALHOST, self.port);
        let Some(network) = &self.network else { return TcpStream::connect(address).await.context(|| "connect") };
        // Refused or accepted at once: it is loopback.
        let stream = network.within(|| std::net::TcpStream::connect(address))?.context(|| "connect")?;
        stream.set_nonblocking(true).context(|| "connect")?;
        TcpStream::from_std(stream).context(|| "connect")
    }

    async fn ask(&self, path: &str) -> Result<(u16, String)> {
        let stream = self.connect().await?;
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let mut stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.context(|| "TLS")?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.context(|| "send")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.context(|| "receive")?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| Error::new(format!("no HTTP answer from {}{path}", self.url())))?;
        Ok((status, answer))
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Api({})", self.url())
    }
}

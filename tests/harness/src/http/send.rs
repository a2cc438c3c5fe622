//! Sends an answer, well or badly. Files go from the page cache to a plain connection without passing through here (sendfile), so that
//! a benchmark measures its client.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::answer::{Answer, Framing, Part};
use super::request::Request;
use super::route::Body;

/// Large enough that a copy costs more than the call for it.
const BLOCK: u64 = 256 * 1024;
/// A limited rate is kept over every interval of this length.
const RATE_INTERVAL: Duration = Duration::from_millis(20);

/// A connection, with TLS or without.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket itself, if what is written to it goes out as it is.
    fn plain(&self) -> Option<&TcpStream>;
}

impl Wire for TcpStream {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Wire for TlsStream<TcpStream> {
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

/// Sends it. False when the connection must be closed afterwards: the answer says so, a fault does, or the client has gone.
/// Calls `almost_done` before the last bytes of a whole body.
pub async fn answer<S: Wire>(
    stream: &mut S,
    request: &Request,
    answer: &Answer,
    down: &AtomicBool,
    almost_done: &mut (dyn FnMut() + Send),
) -> bool {
    let conduct = &answer.conduct;
    tokio::time::sleep(conduct.delay).await;
    if conduct.hang_up || stream.write_all(answer.head().as_bytes()).await.is_err() {
        return false;
    }
    if let Some(part) = answer.part.as_ref().filter(|_| request.method != "HEAD") {
        let limit = conduct.cut_after.unwrap_or(u64::MAX).min(conduct.stall_after.unwrap_or(u64::MAX));
        let whole = body(stream, request, answer, part, limit, down, almost_done).await;
        if !matches!(whole, Ok(true)) {
            return false;
        }
        if limit < part.len {
            if conduct.stall_after == Some(limit) && stream.flush().await.is_ok() {
                pending::<()>().await;
            }
            return false;
        }
        if answer.framing == Framing::Chunked && stream.write_all(b"0\r\n\r\n").await.is_err() {
            return false;
        }
    }
    if answer.keeps_connection() && request.header("connection") != Some("close") {
        return stream.flush().await.is_ok();
    }
    // With TLS this says that nothing is missing; the returns above leave that unsaid.
    let _client_gone = stream.shutdown().await;
    false
}

/// Sends the body up to `limit`. False when the server went down meanwhile.
async fn body<S: Wire>(
    stream: &mut S,
    request: &Request,
    answer: &Answer,
    part: &Part,
    limit: u64,
    down: &AtomicBool,
    almost_done: &mut (dyn FnMut() + Send),
) -> io::Result<bool> {
    let (end, mut done) = (part.len.min(limit), 0);
    let block = answer.conduct.rate.map_or(BLOCK, |rate| (rate / 50).clamp(1, BLOCK));
    while done < end {
        if down.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let piece = block.min(end - done);
        if done + piece == part.len {
            almost_done();
        }
        let sent = match answer.framing {
            Framing::Chunked => chunk(stream, part, done, piece).await?,
            Framing::Length { .. } | Framing::UntilClose => piece_of(stream, part, done, piece).await?,
        };
        request.add_sent(sent);
        done += sent;
        if answer.conduct.rate.is_some() && done < end {
            stream.flush().await?;
            tokio::time::sleep(RATE_INTERVAL).await;
        }
    }
    Ok(true)
}

async fn chunk<S: Wire>(stream: &mut S, part: &Part, at: u64, len: u64) -> io::Result<u64> {
    stream.write_all(format!("{len:x}\r\n").as_bytes()).await?;
    copy(stream, part, at, len).await?;
    stream.write_all(b"\r\n").await?;
    Ok(len)
}

/// Sends some of the bytes, at least one, by the quickest way there is. Returns how many.
async fn piece_of<S: Wire>(stream: &mut S, part: &Part, at: u64, len: u64) -> io::Result<u64> {
    let (Body::File { file, .. }, Some(socket)) = (&part.body, stream.plain()) else {
        return copy(stream, part, at, len).await;
    };
    let send = || {
        let mut position = part.offset + at;
        let count = usize::try_from(len).unwrap_or(usize::MAX);
        rustix::fs::sendfile(socket, file, Some(&mut position), count).map_err(io::Error::from)
    };
    match socket.async_io(Interest::WRITABLE, send).await? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        sent => Ok(sent as u64),
    }
}

async fn copy<S: Wire>(stream: &mut S, part: &Part, at: u64, len: u64) -> io::Result<u64> {
    let (start, count) = (part.offset + at, usize::try_from(len).unwrap_or(usize::MAX));
    match &part.body {
        Body::Bytes(bytes) => {
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let piece = bytes.get(start..start.saturating_add(count)).ok_or(ErrorKind::UnexpectedEof)?;
            stream.write_all(piece).await?;
        }
        Body::File { file, .. } => {
            let mut piece = vec![0; count];
            file.read_exact_at(&mut piece, start)?;
            stream.write_all(&piece).await?;
        }
    }
    Ok(len)
}

//! A slow line between a person and an agent, which may be cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

/// How much goes at once.
const PIECE: usize = 64 << 10;

/// The line. Dropping it cuts it.
pub struct Relay {
    pub address: SocketAddr,
    /// Bytes that went to the agent, and to the person.
    counts: Arc<[AtomicU64; 2]>,
    _serves: AbortOnDropHandle<()>,
}

impl Relay {
    /// A line to `agent` that takes `rate` bytes in a second in each direction, and on which each connection breaks after `cut` bytes in
    /// one of them.
    pub async fn to(agent: SocketAddr, rate: u64, cut: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let counted = counts.clone();
        let serve = async move {
            loop {
                let (person, _) = listener.accept().await.unwrap();
                let counts = counted.clone();
                tokio::spawn(async move {
                    let Ok(agent) = TcpStream::connect(agent).await else { return };
                    let (from_person, to_person) = person.into_split();
                    let (from_agent, to_agent) = agent.into_split();
                    // Whichever breaks takes the other with it.
                    tokio::select! {
                        () = carry(from_person, to_agent, rate, cut, &counts[0]) => {}
                        () = carry(from_agent, to_person, rate, cut, &counts[1]) => {}
                    }
                });
            }
        };
        Self { address, counts, _serves: AbortOnDropHandle::new(tokio::spawn(serve)) }
    }

    /// Bytes that went to the agent.
    pub fn up(&self) -> u64 {
        self.counts[0].load(Ordering::Relaxed)
    }

    /// Bytes that came from it.
    pub fn down(&self) -> u64 {
        self.counts[1].load(Ordering::Relaxed)
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    rate: u64,
    cut: Option<u64>,
    count: &AtomicU64,
) {
    let (mut piece, mut carried) = (vec![0; PIECE], 0);
    while let Ok(read) = from.read(&mut piece).await
        && read > 0
        && to.write_all(&piece[..read]).await.is_ok()
    {
        carried += read as u64;
        count.fetch_add(read as u64, Ordering::Relaxed);
        if cut.is_some_and(|cut| carried >= cut) {
            return;
        }
        tokio::time::sleep(Duration::from_micros(read as u64 * 1_000_000 / rate)).await;
    }
}

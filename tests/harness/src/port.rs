//! Loopback ports that stay ours while a server on them is stopped and started again.
//!
//! A port that the kernel hands out (bind to 0, close, pass the number on) can go to anyone's outgoing connection before the server
//! binds it, and again while the server restarts. So ports come from below the range the kernel hands out, and each is reserved by
//! holding the UDP port of the same number: TCP servers do not mind, other instances see it taken, and it frees itself with its owner.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::error::{Error, Result};

/// Below Linux's ephemeral range (32768 and up), above the well-known services.
const FIRST: u16 = 20_000;
/// How many ports to choose from; a run needs few of them.
const COUNT: u16 = 9_000;

/// A TCP port on 127.0.0.1 that no other holder of a [`PortLease`] gets while this one lives.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _reservation: UdpSocket,
}

impl PortLease {
    /// Reserves a port on which nothing listens.
    ///
    /// # Errors
    /// When every port in the range is in use.
    pub fn reserve() -> Result<Self> {
        let start = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
        let start = u16::try_from(start).unwrap_or_default();
        (0..COUNT).map(|step| FIRST + (start + step) % COUNT).find_map(Self::try_reserve).ok_or_else(|| {
            Error::new(format!(
                "no free TCP port on 127.0.0.1 from {FIRST} to {}: stop some servers",
                FIRST + COUNT - 1
            ))
        })
    }

    fn try_reserve(port: u16) -> Option<Self> {
        let reservation = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        Some(Self { port, _reservation: reservation })
    }

    /// The port's number.
    pub fn port(&self) -> u16 {
        self.port
    }
}

//! The agent, as the real program, with the rights that an agent has and no more. The operator's part is played by hand.

mod access;
pub mod disks;
mod faults;
mod imports;
mod kills;
pub mod lab;
mod leases;
mod outages;
mod reports;
mod stops;
mod volumes;

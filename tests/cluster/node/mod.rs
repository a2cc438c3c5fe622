//! The agent, as the real program, with the rights that an agent has and no more. The operator's part is played by hand.

mod access;
mod disks;
mod faults;
mod imports;
mod kills;
mod lab;
mod leases;
mod outages;
mod reports;
mod stops;

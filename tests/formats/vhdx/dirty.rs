//! A log as qemu writes it, of a machine that went down before what the log says had reached its place.

use std::fs;

use vitrine_engine::model::DiskFormat;

use super::{
    draft::{HEADERS, LOG, MIB, seal},
    text,
};
use crate::{
    blocks::{assert_holds, sectors_of},
    qemu::Qemu,
};

/// Has qemu write, and takes back from the table what the last entry of its log is there for.
#[test]
fn a_log_that_qemu_wrote_is_replayed_as_qemu_replays_it() {
    let qemu = Qemu::new();
    let (raw, dirty, clean) = (qemu.path("raw"), qemu.path("dirty"), qemu.path("clean"));
    qemu.img(&["create", "-q", "-f", "vhdx", "-o", "block_size=1M", text(&dirty), "64M"]);
    let writes = |commands: &[&str]| qemu.io("vhdx", &dirty, &commands.iter().map(|c| (*c).into()).collect::<Vec<_>>());
    writes(&["write -P 0x33 5M 1M"]);
    let before = fs::read(&dirty).unwrap();
    writes(&["write -P 0x55 0 1M"]);
    let mut image = fs::read(&dirty).unwrap();
    let tables = 2 * MIB..4 * MIB;
    assert!(image[tables.clone()] != before[tables.clone()], "the write has changed the table");
    image[tables.clone()].copy_from_slice(&before[tables]);
    assert_eq!(&image[LOG..LOG + 4], b"loge", "the log begins with an entry");
    let guid = image[LOG + 32..LOG + 48].to_vec();
    HEADERS.into_iter().for_each(|header| image[header + 48..header + 64].copy_from_slice(&guid));
    seal(&mut image);
    fs::write(&dirty, &image).unwrap();
    fs::write(&clean, &image).unwrap();
    qemu.img(&["check", "-q", "-r", "all", "-f", "vhdx", text(&clean)]);
    qemu.img(&["convert", "-f", "vhdx", "-O", "raw", text(&clean), text(&raw)]);
    let disk = fs::read(&raw).unwrap();
    assert!(disk[..MIB].iter().all(|byte| *byte == 0x55), "qemu has replayed the log");
    let (size, expected) = (disk.len() as u64, sectors_of(&vec![(0, disk.into())]));
    assert_holds(&dirty, DiskFormat::Vhdx, size, &expected, "replayed");
}

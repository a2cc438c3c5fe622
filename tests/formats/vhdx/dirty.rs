//! Logs that qemu itself leaves behind when it cannot go on.

use std::{fs, path::Path, process::Stdio, time::Duration};

use vitrine_engine::model::DiskFormat;

use super::{MIB, text};
use crate::{
    blocks::{Sectors, assert_holds, sectors_of},
    qemu::Qemu,
};

/// Where qemu puts the block allocation table of a small disk, in sectors of 512 bytes.
const BAT: usize = 2 * MIB / 512;

/// The disk in a copy of `dirty`, after qemu has replayed its log.
fn replayed(qemu: &Qemu, dirty: &Path) -> (u64, Sectors) {
    let (clean, raw) = (qemu.path("clean"), qemu.path("raw"));
    fs::copy(dirty, &clean).unwrap();
    qemu.img(&["check", "-q", "-r", "all", "-f", "vhdx", text(&clean)]);
    qemu.img(&["convert", "-f", "vhdx", "-O", "raw", text(&clean), text(&raw)]);
    let disk = fs::read(&raw).unwrap();
    (disk.len() as u64, sectors_of(&vec![(0, disk.into())]))
}

/// The log is written, and then the table cannot be: qemu gives up, and what its log says is all there is of the new blocks.
#[test]
fn a_log_that_qemu_could_not_carry_out_is_replayed_as_qemu_replays_it() {
    let qemu = Qemu::new();
    let dirty = qemu.path("dirty");
    for (at, length) in [(20, 1500), (5, 64), (33, 1024)] {
        qemu.img(&["create", "-q", "-f", "vhdx", "-o", "block_size=1M", text(&dirty), "40M"]);
        qemu.io("vhdx", &dirty, &["write -P 1 0 70000".into(), "write -P 2 9M 3M".into()]);
        let before = replayed(&qemu, &dirty);
        let fault = format!("event=none,file.inject-error.0.iotype=write,file.inject-error.0.sector={BAT}");
        let options = format!(
            "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={},file.inject-error.0.{fault}",
            text(&dirty)
        );
        let write = format!("write -P 5 {at}M {length}k");
        let output = qemu.program("qemu-io").args(["--image-opts", &options, "-c", &write]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("write failed: Input/output error"), "{said}");
        assert_eq!(qemu.virtual_size("vhdx", &dirty), None, "qemu must say that there is a log to be replayed");
        let (size, expected) = replayed(&qemu, &dirty);
        assert!(expected != before.1, "the log changes nothing");
        assert_holds(&dirty, DiskFormat::Vhdx, size, &expected, &write);
    }
}

/// Wherever it was.
#[test]
fn what_a_killed_qemu_leaves_is_read_as_qemu_repairs_it() {
    let qemu = Qemu::new();
    let dirty = qemu.path("dirty");
    for grown in [9, 12, 30, 45] {
        qemu.img(&["create", "-q", "-f", "vhdx", "-o", "block_size=1M", text(&dirty), "64M"]);
        let mut io = qemu.program("qemu-io");
        io.args(["-f", "vhdx"]);
        for number in 0..60_u64 {
            io.args(["-c", &format!("write -P {} {}k 900k", number + 1, number * 37 % 63 * 1024 + 100)]);
        }
        let mut child = io.arg(&dirty).stdout(Stdio::null()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() && fs::metadata(&dirty).unwrap().len() < grown << 20 {
            std::thread::sleep(Duration::from_micros(200));
        }
        // It may have come to its end meanwhile.
        drop(child.kill());
        child.wait().unwrap();
        let (size, expected) = replayed(&qemu, &dirty);
        assert_holds(&dirty, DiskFormat::Vhdx, size, &expected, &format!("killed at {grown} MiB"));
    }
}

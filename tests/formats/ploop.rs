//! ploop: as qemu writes it, as we write it, of the older kind, with extensions, and made to hurt.

use std::{fs, path::Path};

use bytes::Bytes;
use md5::{Digest as _, Md5};
use vitrine_engine::model::DiskFormat;

use crate::{
    blocks::{
        assert_holds, assert_refused_when_cut, assert_survives_damage, complaint, image, output, read, sectors_of,
    },
    disk::Memory,
    qemu::Qemu,
    written::bytes,
};

const MIB: usize = 1 << 20;
const BAT: usize = 64;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn lived_in_disks_are_read_as_qemu_reads_them() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for options in ["cluster_size=1M", "cluster_size=4k"] {
        qemu.img(&["create", "-q", "-f", "parallels", "-o", options, text(&image), "40M"]);
        let writes: Vec<String> =
            (0..60_u64).map(|n| format!("write -P {} {} 70656", n + 1, n * 7_919 % 80_000 * 512)).collect();
        qemu.io("parallels", &image, &writes);
        qemu.img(&["convert", "-f", "parallels", "-O", "raw", text(&image), text(&raw)]);
        let expected = sectors_of(&vec![(0, fs::read(&raw).unwrap().into())]);
        assert_holds(&image, DiskFormat::Ploop, 40 << 20, &expected, options);
    }
}

/// An image in memory that is changed field by field.
#[derive(Clone)]
struct Draft(Vec<u8>);

impl Draft {
    /// Eight clusters of 20 MiB are stored.
    fn new() -> Self {
        let parts = (0..8).map(|n| (n * (2 << 20) + 5000, bytes(u32::try_from(n).unwrap(), 5000, true))).collect();
        Self(image(output(DiskFormat::Ploop, None), 20 << 20, &parts))
    }

    /// The older kind: clusters of `tracks` sectors, of which every third is stored, from `data_off` on.
    fn older(tracks: u32, data_off: u32) -> Self {
        let (clusters, mut stored) = (40_u32, Vec::new());
        let mut header = b"WithoutFreeSpace".to_vec();
        for number in [2, 16, 1, tracks, clusters, clusters * tracks - 5, 0, 0, data_off, 0, 0, 0] {
            header.extend(u32::to_le_bytes(number));
        }
        let start = if data_off == 0 { 1 } else { data_off };
        for cluster in 0..clusters {
            let entry = if cluster % 3 == 1 { start + u32::try_from(stored.len()).unwrap() / 512 } else { 0 };
            header.extend(entry.to_le_bytes());
            if entry > 0 {
                stored.extend(bytes(cluster, tracks as usize * 512, true));
            }
        }
        header.resize(start as usize * 512, 0);
        Self([header, stored].concat())
    }

    /// With a format extension behind the data.
    fn extended(mut self, features: &[u8]) -> Self {
        let at = self.0.len();
        let mut body = features.to_vec();
        body.resize(MIB - 24, 0);
        self.0.extend(0xab23_4cef_23dc_ea87_u64.to_le_bytes());
        self.0.extend(Md5::digest(&body));
        self.0.extend(body);
        self.u32(56, u32::try_from(at / 512).unwrap())
    }

    fn set(mut self, at: usize, value: &[u8]) -> Self {
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn u32(self, at: usize, value: u32) -> Self {
        self.set(at, &value.to_le_bytes())
    }
}

#[test]
fn the_older_kind_is_read_as_qemu_reads_it() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for (tracks, data_off) in [(1, 0), (63, 0), (63, 7), (504, 0), (512, 512), (2048, 2048)] {
        let draft = Draft::older(tracks, data_off);
        fs::write(&image, &draft.0).unwrap();
        qemu.img(&["convert", "-f", "parallels", "-O", "raw", text(&image), text(&raw)]);
        let disk = fs::read(&raw).unwrap();
        let size = disk.len() as u64;
        let expected = sectors_of(&vec![(0, disk.into())]);
        assert!(expected.len() as u64 >= u64::from(tracks) * 10, "{tracks}: hardly any data");
        assert_holds(&image, DiskFormat::Ploop, size, &expected, &format!("{tracks} {data_off}"));
    }
}

/// A feature of an extension, with 16 bytes of data.
fn feature(magic: u64, flags: u64) -> Vec<u8> {
    [magic.to_le_bytes(), flags.to_le_bytes(), 16_u64.to_le_bytes(), [1; 8], [1; 8]].concat()
}

#[test]
fn what_breaks_no_rule_is_read() {
    let good = read(&mut Memory::new(Draft::new().0), u64::MAX).unwrap();
    let features = [feature(0x2038_5fae_252c_b34a, 1), feature(7, 2)].concat();
    for (name, draft) in [
        ("never opened", Draft::new().u32(44, 0)),
        ("other geometry", Draft::new().set(20, &[0xff; 8])),
        ("more entries than needed", Draft::new().u32(32, 1000)),
        ("unused flags", Draft::new().u32(52, 2)),
        ("no features", Draft::new().extended(&[])),
        ("dirty bitmaps and what need not be known", Draft::new().extended(&features)),
    ] {
        for told in [true, false] {
            let mut input = Memory { bytes: draft.0.clone().into(), streamed: !told };
            let found = read(&mut input, u64::MAX).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(found == good, "{name}");
        }
    }
}

type Case = (&'static str, Draft, (&'static str, &'static str, &'static str));

fn hostile_headers() -> Vec<Case> {
    let good = Draft::new;
    let older = || Draft::older(63, 7);
    vec![
        ("version", good().u32(16, 1), ("version", "version", "1")),
        ("no clusters", good().u32(28, 0), ("cluster-size", "tracks", "0")),
        ("large clusters", good().u32(28, 524_289), ("cluster-size", "tracks", "524289")),
        ("open", good().u32(44, 0x746f_6e59), ("dirty", "in_use", "0x746f6e59")),
        ("neither open nor closed", good().u32(44, 1), ("invalid-field", "in_use", "0x1")),
        (
            "a large disk",
            good().set(36, &[1, 0, 0, 0, 8, 0, 0, 0]),
            ("virtual-size-limit", "nb_sectors", "34359738369"),
        ),
        ("the largest disk", good().set(36, &[0xff; 8]), ("virtual-size-limit", "nb_sectors", "18446744073709551615")),
        ("a large disk of the older kind", older().u32(40, 1), ("invalid-field", "nb_sectors", "0x1000009d3")),
        ("few entries", good().u32(32, 19), ("table-out-of-range", "nb_bat_entries", "19")),
        (
            "entries past the end",
            good().u32(32, 4_000_000).u32(48, 1 << 16),
            ("table-out-of-range", "nb_bat_entries", "0xf42440"),
        ),
        ("data in the bat", older().u32(32, 1000), ("table-overlap", "data_off", "0x7")),
        ("no data offset", good().u32(48, 0), ("table-out-of-range", "data_off", "0x0")),
        ("data between clusters", good().u32(48, 2047), ("table-out-of-range", "data_off", "0x7ff")),
        ("empty and not", good().u32(52, 1), ("invalid-field", "bat[0]", "1")),
        ("extension in the bat", good().u32(56, 1), ("table-out-of-range", "ext_off", "0x1")),
        ("extension between clusters", good().u32(56, 2049), ("table-out-of-range", "ext_off", "0x801")),
        ("extension far away", good().set(56, &[0xff; 8]), ("table-out-of-range", "ext_off", "0xffffffffffffffff")),
        ("extension past the end", good().u32(56, 1 << 20), ("table-out-of-range", "ext_off", "0x20100000")),
    ]
}

fn hostile_bat() -> Vec<Case> {
    let good = Draft::new;
    let older = || Draft::older(63, 7);
    let last = good().0.len() / MIB;
    let past = u32::try_from(last).unwrap();
    vec![
        ("two clusters in one place", good().u32(BAT + 4, 1), ("table-overlap", "bat[1]", "0x100000")),
        ("a cluster past the end", good().u32(BAT + 4, past), ("truncated", "bat[1]", "0xa00000")),
        ("a cluster far past the end", good().u32(BAT + 4, u32::MAX), ("truncated", "bat[1]", "0x10000000000000")),
        ("a cluster in the header", older().u32(BAT, 1), ("table-out-of-range", "bat[0]", "0x200")),
        ("a cluster across two", older().u32(BAT, 8), ("table-out-of-range", "bat[0]", "0x1000")),
        (
            "a cluster in the extension",
            good().extended(&[]).u32(BAT + 4, past),
            ("table-overlap", "bat[1]", "0x900000"),
        ),
        ("no extension", good().u32(56, 2048).u32(BAT, 0), ("invalid-field", "format_extension.magic", "0x0")),
        (
            "a feature that is necessary",
            good().extended(&feature(7, 1)),
            ("unknown-incompatible-feature", "format_extension.feature", "0x7"),
        ),
    ]
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let cases = [hostile_headers(), hostile_bat()].into_iter().flatten();
    let mut complaints: Vec<String> =
        cases.filter_map(|(name, draft, expected)| complaint(name, &Bytes::from(draft.0), expected)).collect();
    let mut damaged = Draft::new().extended(&feature(0x2038_5fae_252c_b34a, 0));
    let at = damaged.0.len() - MIB;
    damaged.0[at + 1000] = 1;
    let sum = hex::encode(&damaged.0[at + 8..at + 24]);
    let expected = ("corrupt", "format_extension.m_CheckSum", sum.as_str());
    complaints.extend(complaint("a damaged extension", &Bytes::from(damaged.0), expected));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let image = Draft::new().extended(&[]).0;
    assert_refused_when_cut(
        &image,
        [17, 63, 64, 100, 143, MIB, 2 * MIB - 1, 5 * MIB + 7, image.len() - MIB, image.len() - 1],
    );
    let older = Draft::older(63, 0).0;
    assert_refused_when_cut(&older, [63, 64, 150, 223, 512, 5000, older.len() - 1]);
}

#[test]
fn damaged_files_are_read_or_refused_and_nothing_else() {
    let seal = |image: &mut Vec<u8>| {
        let at = image.len() - MIB;
        let sum = Md5::digest(&image[at + 24..]);
        image[at + 8..at + 24].copy_from_slice(&sum);
    };
    let extended = Draft::new().extended(&feature(7, 2));
    let at = extended.0.len() - MIB;
    assert_survives_damage(&extended.0, &[0..BAT + 80, at..at + 80], seal);
    assert_survives_damage(&Draft::older(63, 0).0, &[16..BAT, BAT..BAT + 160], |_| {});
}

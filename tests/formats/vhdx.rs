//! vhdx: as qemu writes it, as we write it, with a log to be replayed, and made to hurt.

use std::{fs, path::Path};

use bytes::Bytes;
use vitrine_engine::{
    io::FileReader,
    model::{DiskFormat, Subformat},
};

use crate::{
    blocks::{
        Parts, assert_holds, assert_qemu_reads, assert_refused_when_cut, assert_survives_damage, complaint, disks,
        image, output, read, sectors_of,
    },
    disk::refusals,
    qemu::Qemu,
    written::{bytes, chunks, encode_to_file, write_raw},
};

const MIB: usize = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_qemu_writes_is_read_as_qemu_reads_it() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for (name, size, parts) in disks() {
        let (sectors, rounded) = (sectors_of(&parts), size.next_multiple_of(512));
        write_raw(&raw, size, &parts);
        for options in ["subformat=dynamic", "block_size=1M", "block_size=32M,log_size=4M", "subformat=fixed"] {
            // Empty fixed files of qemu are gigabytes of zeros if the disk is.
            if options == "subformat=fixed" && size > 1 << 30 || options == "block_size=1M" && size == 0 {
                continue;
            }
            qemu.img(&["convert", "-f", "raw", "-O", "vhdx", "-o", options, text(&raw), text(&image)]);
            assert_holds(&image, DiskFormat::Vhdx, rounded, &sectors, &format!("{name} {options}"));
        }
    }
}

#[test]
fn lived_in_disks_are_read_as_qemu_reads_them() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for options in ["block_size=1M", "block_size=1M,subformat=fixed", "block_size=2M,block_state_zero=off"] {
        qemu.img(&["create", "-q", "-f", "vhdx", "-o", options, text(&image), "40M"]);
        let writes: Vec<String> =
            (0..60_u64).map(|n| format!("write -P {} {} 70656", n + 1, n * 7_919 % 80_000 * 512)).collect();
        qemu.io("vhdx", &image, &writes);
        qemu.img(&["convert", "-f", "vhdx", "-O", "raw", text(&image), text(&raw)]);
        let expected = sectors_of(&vec![(0, fs::read(&raw).unwrap().into())]);
        assert_holds(&image, DiskFormat::Vhdx, 40 << 20, &expected, options);
    }
}

/// Behind every 4096 blocks of 1 MiB stands the entry of a sector bitmap.
#[test]
fn entries_of_sector_bitmaps_are_passed_over() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let size = 9 << 30;
    let places = [(4 << 30) - 512, 4 << 30, (8 << 30) - 512, 8 << 30, size - 512];
    let parts: Parts = places.iter().map(|at| (*at, bytes(7, 512, true))).collect();
    write_raw(&raw, size, &parts);
    qemu.img(&["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", text(&raw), text(&image)]);
    assert_holds(&image, DiskFormat::Vhdx, size, &sectors_of(&parts), "qemu's");
    encode_to_file(output(DiskFormat::Vhdx, None), size, true, &chunks(size, &parts), &image);
    assert_holds(&image, DiskFormat::Vhdx, size, &sectors_of(&parts), "ours");
    assert_qemu_reads(&qemu, "vhdx", &image, &sectors_of(&parts), "ours");
}

#[test]
fn what_we_write_is_read_by_qemu_and_by_us() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for (name, size, parts) in disks() {
        let (sectors, rounded) = (sectors_of(&parts), size.next_multiple_of(512));
        write_raw(&raw, size, &parts);
        for subformat in [None, Some(Subformat::Dynamic), Some(Subformat::Fixed)] {
            for told in [true, false] {
                let what = format!("{name} {subformat:?} {told}");
                let output = output(DiskFormat::Vhdx, subformat);
                encode_to_file(output, size, told, &chunks(size, &parts), &image);
                if subformat == Some(Subformat::Fixed) && size > 1 << 30 {
                    // All of it would be read.
                    assert_eq!(refusals(&mut FileReader::open(&image).unwrap(), None), Vec::<String>::new());
                    continue;
                }
                assert_holds(&image, DiskFormat::Vhdx, rounded, &sectors, &what);
                qemu.img(&["check", "-q", "-f", "vhdx", text(&image)]);
                if size < 1 << 30 {
                    qemu.assert_equal("vhdx", &image, &raw);
                } else {
                    assert_qemu_reads(&qemu, "vhdx", &image, &sectors, &what);
                }
                if subformat.is_none() && size > 1 << 30 {
                    let length = fs::metadata(&image).unwrap().len();
                    assert!(length < 600 << 20, "{what}: {length} bytes for {} parts", parts.len());
                }
            }
        }
    }
}

/// An image in memory that is changed field by field.
struct Draft(Vec<u8>);

/// Where the structures of what we write lie.
const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [usize; 2] = [192 << 10, 256 << 10];
const LOG: usize = MIB;
const METADATA: usize = 2 * MIB;
const ITEMS: usize = METADATA + (64 << 10);
const BAT: usize = 3 * MIB;

impl Draft {
    /// Eight blocks of 20 MiB are stored.
    fn new() -> Self {
        let parts = (0..8).map(|n| (n * (2 << 20) + 5000, bytes(u32::try_from(n).unwrap(), 5000, true))).collect();
        Self(image(output(DiskFormat::Vhdx, None), 20 << 20, &parts))
    }

    fn set(mut self, at: usize, value: &[u8]) -> Self {
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn u32(self, at: usize, value: u32) -> Self {
        self.set(at, &value.to_le_bytes())
    }

    fn u64(self, at: usize, value: u64) -> Self {
        self.set(at, &value.to_le_bytes())
    }

    /// Changes both headers.
    fn header(self, at: usize, value: &[u8]) -> Self {
        HEADERS.into_iter().fold(self, |draft, header| draft.set(header + at, value)).sealed()
    }

    /// Changes both region tables.
    fn regions(self, at: usize, value: &[u8]) -> Self {
        REGION_TABLES.into_iter().fold(self, |draft, table| draft.set(table + at, value)).sealed()
    }

    fn sealed(mut self) -> Self {
        seal(&mut self.0);
        self
    }

    /// Writes entries into the log and says in the headers that it holds something.
    fn logged(self, entries: &[(usize, Entry)]) -> Self {
        let draft = self.header(48, &GUID);
        entries.iter().fold(draft, |draft, (at, entry)| {
            let bytes = entry.bytes();
            let before = bytes.len().min(MIB - at);
            draft.set(LOG + at, &bytes[..before]).set(LOG, &bytes[before..])
        })
    }
}

/// Makes the checksums right.
fn seal(image: &mut [u8]) {
    let structures = HEADERS.map(|at| (at, 4096)).into_iter().chain(REGION_TABLES.map(|at| (at, 65536)));
    for (at, length) in structures {
        let Some(bytes) = image.get_mut(at..at + length) else { continue };
        bytes[4..8].fill(0);
        let sum = crc32c::crc32c(bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

const GUID: [u8; 16] = *b"names this log!!";

/// An entry of the log.
#[derive(Clone)]
struct Entry {
    number: u64,
    tail: u32,
    flushed: u64,
    guid: [u8; 16],
    /// File offset, and the sector that goes there; `None`: so many zeros.
    changes: Vec<(u64, Result<Vec<u8>, u64>)>,
    /// Changes the bytes before their checksum is made.
    spoil: fn(&mut [u8]),
    seal: bool,
}

impl Entry {
    fn new(number: u64, tail: usize, changes: Vec<(u64, Result<Vec<u8>, u64>)>) -> Self {
        let tail = u32::try_from(tail).unwrap();
        Self { number, tail, flushed: 4 << 20, guid: GUID, changes, spoil: |_| {}, seal: true }
    }

    fn bytes(&self) -> Vec<u8> {
        let (mut descriptors, mut data) = (vec![0_u8; 64], Vec::new());
        for (offset, change) in &self.changes {
            match change {
                Ok(sector) => {
                    descriptors.extend([b"desc", &sector[4092..], &sector[..8]].concat());
                    data.extend(b"data");
                    data.extend(u32::try_from(self.number >> 32).unwrap().to_le_bytes());
                    data.extend(&sector[8..4092]);
                    data.extend(u32::try_from(self.number & 0xffff_ffff).unwrap().to_le_bytes());
                }
                Err(zeros) => descriptors.extend([&b"zero\0\0\0\0"[..], &zeros.to_le_bytes()].concat()),
            }
            descriptors.extend([offset.to_le_bytes(), self.number.to_le_bytes()].concat());
        }
        descriptors.resize(descriptors.len().next_multiple_of(4096), 0);
        let mut bytes = [descriptors, data].concat();
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(b"loge");
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.tail.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..28].copy_from_slice(&u32::try_from(self.changes.len()).unwrap().to_le_bytes());
        bytes[32..48].copy_from_slice(&self.guid);
        bytes[48..56].copy_from_slice(&self.flushed.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.flushed.to_le_bytes());
        (self.spoil)(&mut bytes);
        if self.seal {
            let sum = crc32c::crc32c(&bytes);
            bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }
}

/// A sector of the BAT: of the first blocks those are stored that `hosts` (in MiB) names.
fn bat_sector(hosts: &[u64]) -> Vec<u8> {
    let mut sector: Vec<u8> =
        hosts.iter().flat_map(|mib| (if *mib == 0 { 0 } else { mib << 20 | 6 }).to_le_bytes()).collect();
    sector.resize(4096, 0);
    sector
}

/// Logs that a crash may leave, each with a name.
fn logs() -> Vec<(&'static str, Draft)> {
    let bat = BAT as u64;
    let swapped = || vec![(bat, Ok(bat_sector(&[5, 4, 0, 7])))];
    let later = || vec![(bat, Ok(bat_sector(&[0, 0, 11, 10, 9])))];
    let sector = 4096;
    vec![
        ("one entry", Draft::new().logged(&[(0, Entry::new(1, 0, swapped()))])),
        ("a large number", Draft::new().logged(&[(0, Entry::new(7 << 40 | 3, 0, swapped()))])),
        ("zeros", Draft::new().logged(&[(sector, Entry::new(5, sector, vec![(bat, Err(8192))]))])),
        (
            "two entries, the later counts",
            Draft::new().logged(&[(0, Entry::new(3, 0, swapped())), (2 * sector, Entry::new(4, 0, later()))]),
        ),
        (
            "an entry before the tail does not count",
            Draft::new()
                .logged(&[(0, Entry::new(3, 0, vec![(bat, Err(4096))])), (sector, Entry::new(4, sector, swapped()))]),
        ),
        (
            "an entry goes on at the log's beginning",
            Draft::new().logged(&[
                (MIB - 3 * sector, Entry::new(8, MIB - 3 * sector, later())),
                (MIB - sector, Entry::new(9, MIB - 3 * sector, swapped())),
            ]),
        ),
        (
            "an old row, longer and with lower numbers",
            Draft::new().logged(&[
                (0, Entry::new(10, 0, swapped())),
                (50 * sector, Entry::new(2, 50 * sector, later())),
                (52 * sector, Entry::new(3, 50 * sector, later())),
            ]),
        ),
        (
            "an entry of another log",
            Draft::new().logged(&[
                (0, Entry::new(1, 0, swapped())),
                (2 * sector, Entry { guid: [9; 16], ..Entry::new(2, 0, later()) }),
            ]),
        ),
        (
            "an entry that was not finished",
            Draft::new().logged(&[
                (0, Entry::new(1, 0, swapped())),
                (2 * sector, Entry { seal: false, ..Entry::new(2, 0, later()) }),
            ]),
        ),
        (
            "a changed size in the metadata",
            Draft::new().logged(&[(0, {
                let mut items = Draft::new().0[ITEMS..ITEMS + 4096].to_vec();
                items[8..16].copy_from_slice(&(12_u64 << 20).to_le_bytes());
                Entry::new(1, 0, vec![(ITEMS as u64, Ok(items)), (bat, Ok(bat_sector(&[4, 0, 6])))])
            })]),
        ),
    ]
}

#[test]
fn a_log_is_replayed_as_qemu_replays_it() {
    let qemu = Qemu::new();
    let (raw, dirty, clean) = (qemu.path("raw"), qemu.path("dirty"), qemu.path("clean"));
    let before = read(&mut crate::disk::Memory::new(Draft::new().0), u64::MAX).unwrap();
    for (name, draft) in logs() {
        fs::write(&dirty, &draft.0).unwrap();
        fs::write(&clean, &draft.0).unwrap();
        qemu.img(&["check", "-q", "-r", "all", "-f", "vhdx", text(&clean)]);
        qemu.img(&["convert", "-f", "vhdx", "-O", "raw", text(&clean), text(&raw)]);
        let disk = fs::read(&raw).unwrap();
        let (size, expected) = (disk.len() as u64, sectors_of(&vec![(0, disk.into())]));
        assert_ne!((size, &expected), (before.0, &before.1), "{name}: the log changes nothing");
        assert_holds(&dirty, DiskFormat::Vhdx, size, &expected, name);
    }
}

/// With sectors of 4 KiB a bitmap describes eight times as many blocks.
#[test]
fn disks_with_sectors_of_4_kib_are_read() {
    let size = 40 << 30;
    let places = [0_u64, 5 << 30, (32 << 30) - 4096, 32 << 30, size - 4096];
    let parts: Parts = places.iter().map(|at| (*at, bytes(3, 4096, true))).collect();
    let mut image = image(output(DiskFormat::Vhdx, None), size, &parts);
    image[ITEMS + 32..ITEMS + 36].copy_from_slice(&4096_u32.to_le_bytes());
    let entry = |index: usize| BAT + index * 8..BAT + index * 8 + 8;
    let entries: Vec<_> = places.iter().map(|at| usize::try_from(at >> 20).unwrap()).collect();
    let values: Vec<Vec<u8>> = entries.iter().map(|block| image[entry(block + block / 4096)].to_vec()).collect();
    image[BAT..BAT + MIB].fill(0);
    for (block, value) in entries.iter().zip(&values) {
        image[entry(block + block / 32768)].copy_from_slice(value);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, image).unwrap();
    assert_holds(&path, DiskFormat::Vhdx, size, &sectors_of(&parts), "4 KiB");
}

type Case = (&'static str, Draft, (&'static str, &'static str, &'static str));

/// An entry of the metadata table, by its number in what we write.
const fn metadata_entry(number: usize) -> usize {
    METADATA + 32 + 32 * number
}

fn hostile_headers() -> Vec<Case> {
    let good = Draft::new;
    let guid = &GUID[..];
    vec![
        (
            "no sound header",
            HEADERS.into_iter().fold(good(), |d, at| d.u32(at + 100, 1)),
            ("corrupt", "header.Checksum", "both wrong"),
        ),
        (
            "two newest headers",
            good().u64(HEADERS[0] + 8, 1).set(HEADERS[0] + 16, &[0]).sealed(),
            ("corrupt", "header.SequenceNumber", "1"),
        ),
        ("version", good().header(66, &[2, 0]), ("version", "header.Version", "2")),
        ("log version", good().header(48, guid).header(64, &[1, 0]), ("version", "header.LogVersion", "1")),
        ("log length", good().header(68, &[1, 0, 0, 0]), ("table-out-of-range", "header.LogLength", "1")),
        ("log in the headers", good().header(72, &[0; 8]), ("table-out-of-range", "header.LogOffset", "0x0")),
        ("log not aligned", good().header(72, &[1, 0, 16, 0]), ("table-out-of-range", "header.LogOffset", "0x100001")),
        (
            "log in the metadata",
            good().header(72, &[0, 0, 32, 0]),
            ("table-overlap", "region_table.Metadata", "0x200000"),
        ),
        ("log past the end", good().header(74, &[0xff]), ("table-out-of-range", "header.LogOffset", "0xff0000")),
        (
            "no region table",
            REGION_TABLES.into_iter().fold(good(), |d, at| d.u32(at + 100, 1)),
            ("corrupt", "region_table.Checksum", "both wrong"),
        ),
        (
            "two region tables",
            good().u32(REGION_TABLES[1] + 1000, 1).sealed(),
            ("invalid-field", "region_table", "two tables"),
        ),
        ("many regions", good().regions(8, &[0, 8]), ("invalid-field", "region_table.EntryCount", "2048")),
        ("no bat", good().regions(16, &[1; 16]).regions(44, &[0]), ("invalid-field", "region_table", "absent")),
        ("no metadata", good().regions(8, &[1, 0]), ("invalid-field", "region_table", "absent")),
        (
            "an unknown region",
            good().regions(16, &[1; 16]),
            ("unknown-incompatible-feature", "region_table.Required", "01010101-0101-0101-0101-010101010101"),
        ),
        ("two bats", good().regions(48, &REGION_GUID), ("invalid-field", "region_table", "BAT")),
        ("bat not aligned", good().regions(32, &[1]), ("table-out-of-range", "region_table.BAT", "0x300001")),
        ("bat in the headers", good().regions(32, &[0; 8]), ("table-out-of-range", "region_table.BAT", "0x0")),
        ("bat without length", good().regions(40, &[0; 4]), ("table-out-of-range", "region_table.BAT", "0")),
        ("bat past the end", good().regions(36, &[1]), ("table-out-of-range", "region_table.BAT", "0x100300000")),
        ("bat in the metadata", good().regions(34, &[0x20]), ("table-overlap", "region_table.Metadata", "0x200000")),
    ]
}

const REGION_GUID: [u8; 16] =
    [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 8];
const PARENT_LOCATOR: [u8; 16] =
    [0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c];

fn hostile_metadata() -> Vec<Case> {
    let good = Draft::new;
    let entry = metadata_entry;
    let extra = || good().set(METADATA + 10, &[6]);
    let absent = |number| good().set(entry(number), &[1; 16]).u32(entry(number) + 24, 0);
    vec![
        (
            "no metadata table",
            good().set(METADATA, b"metadatA"),
            ("invalid-field", "metadata_table.Signature", "metadatA"),
        ),
        ("many items", good().set(METADATA + 10, &[0, 8]), ("invalid-field", "metadata_table.EntryCount", "2048")),
        ("no parameters", absent(0), ("invalid-field", "metadata.FileParameters", "absent")),
        ("no size", absent(1), ("invalid-field", "metadata.VirtualDiskSize", "absent")),
        ("no identifier", absent(2), ("invalid-field", "metadata.VirtualDiskId", "absent")),
        ("no sector", absent(3), ("invalid-field", "metadata.LogicalSectorSize", "absent")),
        ("no physical sector", absent(4), ("invalid-field", "metadata.PhysicalSectorSize", "absent")),
        ("an item twice", good().set(entry(3), &PHYSICAL), ("invalid-field", "metadata_table", "PhysicalSectorSize")),
        (
            "an unknown item",
            extra().set(entry(5), &[2; 16]).u32(entry(5) + 24, 4),
            ("unknown-incompatible-feature", "metadata_table.IsRequired", "02020202-0202-0202-0202-020202020202"),
        ),
        (
            "an application's item",
            extra().set(entry(5), &[2; 16]).u32(entry(5) + 24, 5),
            ("unknown-incompatible-feature", "metadata_table.IsRequired", "02020202-0202-0202-0202-020202020202"),
        ),
        (
            "a parent locator",
            extra().set(entry(5), &PARENT_LOCATOR),
            ("backing-file", "metadata.ParentLocator", "present"),
        ),
        ("an item's length", good().u32(entry(1) + 20, 4), ("invalid-field", "metadata.VirtualDiskSize.Length", "4")),
        (
            "an item in the table",
            good().u32(entry(1) + 16, 65535),
            ("table-overlap", "metadata.VirtualDiskSize", "0xffff"),
        ),
        (
            "an item past the region",
            good().u32(entry(1) + 16, 0x000f_fffc),
            ("table-out-of-range", "metadata.VirtualDiskSize", "0xffffc"),
        ),
        (
            "two items in one place",
            good().u32(entry(4) + 16, 0x1_0022),
            ("table-overlap", "metadata.PhysicalSectorSize", "0x10022"),
        ),
        ("small blocks", good().u32(ITEMS, 512 << 10), ("cluster-size", "metadata.FileParameters.BlockSize", "524288")),
        ("odd blocks", good().u32(ITEMS, 3 << 20), ("cluster-size", "metadata.FileParameters.BlockSize", "3145728")),
        (
            "large blocks",
            good().u32(ITEMS, 512 << 20),
            ("cluster-size", "metadata.FileParameters.BlockSize", "536870912"),
        ),
        ("a parent", good().u32(ITEMS + 4, 2), ("backing-file", "metadata.FileParameters.HasParent", "1")),
        ("unknown flags", good().u32(ITEMS + 4, 8), ("invalid-field", "metadata.FileParameters", "0x8")),
        (
            "a large disk",
            good().u64(ITEMS + 8, 17 << 40),
            ("virtual-size-limit", "metadata.VirtualDiskSize", "18691697672192"),
        ),
        ("half a sector", good().u64(ITEMS + 8, 513), ("invalid-field", "metadata.VirtualDiskSize", "513")),
        ("odd sectors", good().u32(ITEMS + 32, 1024), ("invalid-field", "metadata.LogicalSectorSize", "1024")),
        ("odd physical sectors", good().u32(ITEMS + 36, 520), ("invalid-field", "metadata.PhysicalSectorSize", "520")),
        ("a short bat", good().u64(ITEMS + 8, 1 << 40), ("table-out-of-range", "region_table.BAT", "1048576")),
    ]
}

const PHYSICAL: [u8; 16] =
    [0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56];

fn hostile_bat() -> Vec<Case> {
    let good = Draft::new;
    let large = || {
        let parts = vec![(9 << 29, bytes(1, 512, true))];
        Draft(image(output(DiskFormat::Vhdx, None), 5 << 30, &parts))
    };
    vec![
        ("an unknown state", good().u64(BAT + 16, 4), ("invalid-field", "bat[2]", "0x4")),
        ("reserved bits", good().u64(BAT + 16, 0x50_000e), ("invalid-field", "bat[2]", "0x50000e")),
        ("a part of a block", good().u64(BAT + 16, 0x50_0007), ("backing-file", "bat[2]", "0x500007")),
        ("a sector bitmap", large().u64(BAT + 8 * 4096, 0x60_0006), ("backing-file", "bat[4096]", "0x600006")),
        ("a block in the headers", good().u64(BAT + 16, 6), ("table-overlap", "bat[2]", "0x6")),
        ("a block in the log", good().u64(BAT + 16, 0x10_0006), ("table-overlap", "bat[2]", "0x100000")),
        ("a block in the metadata", good().u64(BAT + 16, 0x20_0006), ("table-overlap", "bat[2]", "0x200000")),
        ("a block in the bat", good().u64(BAT + 16, 0x30_0006), ("table-overlap", "bat[2]", "0x300000")),
        ("two blocks in one place", good().u64(BAT + 24, 0x50_0006), ("table-overlap", "bat[3]", "0x500000")),
        ("a block past the end", good().u64(BAT + 16, 0xd0_0006), ("truncated", "bat[2]", "0xe00000")),
        (
            "a block far past the end",
            good().u64(BAT + 16, u64::MAX << 20 | 6),
            ("truncated", "bat[2]", "0xffffffffffffffff"),
        ),
    ]
}

fn hostile_logs() -> Vec<Case> {
    let nothing = ("dirty", "header.LogGuid", "656d616e-2073-6874-6973-206c6f672121");
    let bat = BAT as u64;
    let entry = || Entry::new(1, 0, vec![(bat, Ok(bat_sector(&[5])))]);
    let with = |entry| Draft::new().logged(&[(0, entry)]);
    let change = |offset, change| Entry { changes: vec![(offset, change)], ..entry() };
    vec![
        ("an empty log", Draft::new().header(48, &GUID), nothing),
        ("a long log", with(entry()).header(70, &[0x30]), ("dirty", "header.LogLength", "3145728")),
        ("no log", with(entry()).header(68, &[0; 4]), ("dirty", "header.LogLength", "0")),
        ("checksum", with(Entry { seal: false, ..entry() }), nothing),
        ("signature", with(Entry { spoil: |b| b[0] = b'L', ..entry() }), nothing),
        ("another log's", with(Entry { guid: [1; 16], ..entry() }), nothing),
        ("number 0", with(Entry { number: 0, ..entry() }), nothing),
        ("tail", with(Entry { tail: 8192, ..entry() }), nothing),
        ("tail not aligned", with(Entry { tail: 1, ..entry() }), nothing),
        ("length", with(Entry { spoil: |b| b[8..12].fill(0), ..entry() }), nothing),
        ("descriptors", with(Entry { spoil: |b| b[24..28].fill(0xff), ..entry() }), nothing),
        ("descriptor's signature", with(Entry { spoil: |b| b[64] = b'D', ..entry() }), nothing),
        ("descriptor's number", with(Entry { spoil: |b| b[88] = 9, ..entry() }), nothing),
        ("data's signature", with(Entry { spoil: |b| b[4096] = b'D', ..entry() }), nothing),
        ("data's number", with(Entry { spoil: |b| b[8191] = 9, ..entry() }), nothing),
        ("no data", with(Entry { spoil: |b| b[24] = 2, ..entry() }), nothing),
        ("offset not aligned", with(change(bat + 512, Ok(bat_sector(&[])))), nothing),
        ("zeros not aligned", with(change(bat, Err(512))), nothing),
        ("zeros without end", with(change(bat, Err(u64::MAX << 12))), nothing),
        ("a change of data", with(change(5 << 20, Ok(bat_sector(&[])))), ("dirty", "log.FileOffset", "0x500000")),
        ("a change of the headers", with(change(64 << 10, Err(4096))), ("dirty", "log.FileOffset", "0x10000")),
        ("zeros past the bat", with(change(bat, Err(2 << 20))), ("dirty", "log.FileOffset", "0x300000")),
        (
            "a longer file",
            with(Entry { flushed: 1 << 40, ..entry() }),
            ("table-out-of-range", "log.FlushedFileOffset", "0x10000000000"),
        ),
    ]
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let cases = [hostile_headers(), hostile_metadata(), hostile_bat(), hostile_logs()].into_iter().flatten();
    let complaints: Vec<String> =
        cases.filter_map(|(name, draft, expected)| complaint(name, &Bytes::from(draft.0), expected)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// What may differ from file to file without harm.
#[test]
fn what_breaks_no_rule_is_read() {
    let good = read(&mut crate::disk::Memory::new(Draft::new().0), u64::MAX).unwrap();
    let unknown = [&[3_u8; 16][..], &(4_u64 << 20).to_le_bytes(), &(1_u32 << 20).to_le_bytes(), &[0; 4]].concat();
    let mut roomy = Draft::new().0;
    // A region that is not known and need not be, where a block was that is now behind the others.
    let end = roomy.len();
    let block = roomy[4 * MIB..5 * MIB].to_vec();
    roomy.extend(block);
    let roomy = Draft(roomy).u64(BAT, end as u64 | 6).regions(8, &[3]).regions(80, &unknown);
    for (name, draft) in [
        ("the first header only", Draft::new().u32(HEADERS[1], 0)),
        ("the second header only", Draft::new().u32(HEADERS[0], 0)),
        ("the first region table only", Draft::new().u32(REGION_TABLES[1], 0)),
        ("the second region table only", Draft::new().u32(REGION_TABLES[0], 0)),
        (
            "two equal headers",
            Draft::new().u64(HEADERS[0] + 8, 1).set(HEADERS[0] + 16, &[0; 32]).set(HEADERS[1] + 16, &[0; 32]).sealed(),
        ),
        ("an old log", Draft::new().set(LOG, b"loge")),
        ("an unknown region", roomy),
        ("an unknown item", Draft::new().set(METADATA + 10, &[6]).set(metadata_entry(5), &[2; 16])),
        (
            "states without a block",
            Draft::new().u64(BAT + 8, 0x50_0001).u64(BAT + 24, 2).u64(BAT + 40, 0x50_0003).u64(BAT + 56, 5),
        ),
    ] {
        let found = read(&mut crate::disk::Memory::new(draft.0), u64::MAX).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found == good, "{name}");
    }
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let image = Draft::new().0;
    let ends =
        [HEADERS.to_vec(), REGION_TABLES.to_vec(), vec![LOG, METADATA, ITEMS, BAT, 4 * MIB, image.len()]].concat();
    assert_refused_when_cut(&image, ends.iter().flat_map(|end| [end - 1, end - 512]));
    assert_refused_when_cut(&image, [9, 512, 100_000, ITEMS + 9, BAT + 12, 5 * MIB + 7]);
}

#[test]
fn damaged_files_are_read_or_refused_and_nothing_else() {
    let tables =
        [0..9, HEADERS[0]..HEADERS[0] + 80, HEADERS[1]..HEADERS[1] + 80, METADATA..METADATA + 200, ITEMS..ITEMS + 40]
            .into_iter()
            .chain(REGION_TABLES.map(|at| at..at + 80))
            .chain(std::iter::once(BAT..BAT + 180))
            .collect::<Vec<_>>();
    assert_survives_damage(&Draft::new().0, &tables, |image| seal(image));
    let (_, dirty) = logs().swap_remove(3);
    let log = LOG..LOG + 160;
    assert_survives_damage(&dirty.0, &[tables, vec![log]].concat(), |image| {
        seal(image);
        if let Some(entry) = image.get_mut(LOG..LOG + 8192) {
            entry[4..8].fill(0);
            let sum = crc32c::crc32c(entry);
            entry[4..8].copy_from_slice(&sum.to_le_bytes());
        }
    });
}

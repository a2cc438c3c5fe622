//! One file for every rule that a vhdx can break.

use bytes::Bytes;
use vitrine_engine::model::DiskFormat;

use super::draft::{BAT, Draft, Entry, GUID, HEADERS, ITEMS, METADATA, REGION_TABLES, bat_sector, metadata_entry};
use crate::{
    blocks::{complaint, image, output},
    written::bytes,
};

type Case = (&'static str, Draft, (&'static str, &'static str, &'static str));

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
        ("numbers from 0", Draft::new().logged(&[(0, Entry { number: 0, ..entry() }), (8192, entry())]), nothing),
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

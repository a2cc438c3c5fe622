//! vhdx: as qemu writes it, as we write it, with a log to be replayed, and made to hurt.

mod dirty;
mod draft;
mod hostile;

use std::{fs, path::Path};

use vitrine_engine::model::DiskFormat;

use self::draft::{
    BAT, Draft, Entry, HEADERS, ITEMS, LOG, METADATA, MIB, REGION_TABLES, bat_sector, metadata_entry, seal,
};
use crate::{
    blocks::{
        Parts, assert_holds, assert_qemu_reads, assert_refused_when_cut, assert_survives_damage, image, output, read,
        sectors_of,
    },
    qemu::Qemu,
    written::{bytes, chunks, encode_to_file, write_raw},
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
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

/// What stands in the log before the tail was applied long ago, and what does not follow in number is older still. qemu looks at neither
/// for the first two entries, and would find no disk here.
#[test]
fn entries_outside_of_the_active_sequence_do_not_count() {
    let lost = || vec![(ITEMS as u64, Err(4096))];
    let kept = || vec![(BAT as u64, Ok(bat_sector(&[5, 4])))];
    let content = |entries: &[(usize, Entry)]| {
        read(&mut crate::disk::Memory::new(Draft::new().logged(entries).0), u64::MAX).unwrap()
    };
    let alone = content(&[(0, Entry::new(3, 0, kept()))]);
    assert!(content(&[(0, Entry::new(3, 0, lost())), (4096, Entry::new(4, 4096, kept()))]) == alone);
    assert!(content(&[(0, Entry::new(3, 0, kept())), (8192, Entry::new(5, 0, lost()))]) == alone);
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

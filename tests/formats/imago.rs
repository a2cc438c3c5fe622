//! A second judge besides qemu: imago, a library of its own making, where it reads a form that is written here: raw, and qcow2 without
//! compression and with zlib. It knows neither zstd nor any vmdk with its data inside.

use std::path::Path;

use imago::{FormatAccess, FormatDriverBuilder as _, PermissiveImplicitOpenGate, file::File, qcow2::Qcow2, raw::Raw};
use vitrine_engine::model::{Compression, DiskFormat, OutputFormat};

use crate::{
    blocks::output,
    qemu::Qemu,
    written::{chunks, encode_to_file, parts, write_raw},
};

/// What imago finds in an image.
fn content(image: &Path, format: DiskFormat) -> Vec<u8> {
    let gate = PermissiveImplicitOpenGate::default();
    let disk = match format {
        DiskFormat::Qcow2 => FormatAccess::new(Qcow2::<File>::builder_path(image).open(gate).unwrap()),
        _ => FormatAccess::new(Raw::<File>::builder_path(image).open(gate).unwrap()),
    };
    let mut bytes = vec![0xee; usize::try_from(disk.size()).unwrap()];
    disk.read(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn another_library_finds_the_same_disk_in_what_is_written() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let qcow2 =
        |compression, cluster_size| OutputFormat { compression, cluster_size, ..output(DiskFormat::Qcow2, None) };
    let mut count = 0;
    for size in [512, (5 << 20) + 512, 20 << 20] {
        for cluster_size in [512, 4096, 65_536, 2 << 20] {
            let parts = parts(u64::from(cluster_size), size);
            write_raw(&raw, size, &parts);
            let expected = std::fs::read(&raw).unwrap();
            for output in
                [OutputFormat::RAW, qcow2(Compression::None, cluster_size), qcow2(Compression::Zlib, cluster_size)]
            {
                encode_to_file(output, size, true, &chunks(size, &parts), &image);
                assert!(content(&image, output.disk_format) == expected, "{output:?}, {size} bytes");
                count += 1;
            }
        }
    }
    assert_eq!(count, 36);
}

//! Memory stays bounded, whatever the file.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use vitrine_harness::Scope;

use crate::program::{debian, vitrine};

/// What an import may take, in bytes, on a machine with any number of processors: each works on a chunk of its own, until there are
/// no more buffers.
const MOST: u64 = 128 << 20;

/// Runs it with `arguments`; the most memory it had, in bytes.
async fn peak(scope: &Scope, arguments: &[&str]) -> u64 {
    let process = scope.spawn("vitrine", vitrine(arguments)).unwrap();
    let usage = process.measure(Duration::from_mins(3)).await.unwrap();
    assert!(usage.status.success(), "{}", process.log_tail());
    usage.peak_rss
}

/// A qcow2 of the smallest clusters, `count` of them, each `apart` bytes behind the one before.
fn scattered(folder: &Path, count: u64, apart: u64) -> PathBuf {
    const CLUSTER: u64 = 512;
    const ENTRIES: u64 = CLUSTER / 8;
    let tables = count.div_ceil(ENTRIES);
    let (l1, first_l2) = (2 * CLUSTER, 2 * CLUSTER + (tables * 8).next_multiple_of(CLUSTER));
    let mut header = b"QFI\xfb".to_vec();
    header.extend([0, 0, 0, 2]);
    header.extend([0; 12]);
    header.extend(CLUSTER.ilog2().to_be_bytes());
    header.extend((count * CLUSTER).to_be_bytes());
    header.extend([0; 4]);
    header.extend(u32::try_from(tables).unwrap().to_be_bytes());
    header.extend(l1.to_be_bytes());
    header.extend(CLUSTER.to_be_bytes());
    header.extend([0, 0, 0, 1]);
    header.resize(usize::try_from(CLUSTER).unwrap(), 0);
    let path = folder.join("scattered.qcow2");
    let file = File::create(&path).unwrap();
    file.write_all_at(&header, 0).unwrap();
    let copied = |offset: u64| (offset | 1 << 63).to_be_bytes();
    for table in 0..tables {
        file.write_all_at(&copied(first_l2 + table * CLUSTER), l1 + table * 8).unwrap();
    }
    let data = (first_l2 + tables * CLUSTER).next_multiple_of(apart);
    for cluster in 0..count {
        file.write_all_at(&copied(data + cluster * apart), first_l2 + cluster * 8).unwrap();
        file.write_all_at(&[7; 512], data + cluster * apart).unwrap();
    }
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_bytes_of_every_piece_do_not_keep_the_pieces() {
    let scope = Scope::open("memory").unwrap();
    let path = scattered(scope.dir(), 2048, 512 << 10);
    let store = scope.dir().join("store");
    std::fs::create_dir(&store).unwrap();
    let arguments = ["import", path.to_str().unwrap(), "--store", store.to_str().unwrap(), "--quiet"];
    let peak = peak(&scope, &arguments).await;
    assert!(peak < MOST, "{} MiB", peak >> 20);
}

/// Packed quickly, and as hungry to unpack as what the names say.
#[tokio::test(flavor = "multi_thread")]
async fn packed_sources_leave_the_rest_of_an_import_enough() {
    let scope = Scope::open("memory").unwrap();
    let (packed, store) = (scope.dir().join("packed"), scope.dir().join("store"));
    std::fs::create_dir(&store).unwrap();
    for (name, tool) in [
        ("xz -9", &["xz", "--lzma2=preset=0,dict=64MiB"][..]),
        ("xz -6 -T", &["xz", "-T2", "--block-size=24MiB", "--lzma2=preset=0,dict=8MiB"]),
        ("xz -3 -T", &["xz", "-T2", "--block-size=12MiB", "--lzma2=preset=0,dict=4MiB"]),
        ("zstd -19", &["zstd", "-q", "-1", "--zstd=wlog=23"]),
    ] {
        let to = File::create(&packed).unwrap();
        let mut command = Command::new(tool[0]);
        command.args(&tool[1..]).arg("-c").arg(debian("disk.raw")).stdout(to);
        assert!(command.status().unwrap().success(), "{name}");
        let arguments = ["import", packed.to_str().unwrap(), "--store", store.to_str().unwrap(), "--quiet"];
        let peak = peak(&scope, &arguments).await;
        assert!(peak < MOST, "{name}: {} MiB", peak >> 20);
    }
}

//! Streams as VMware writes them, whose tables stand behind their grains: read as they come, and by their tables.

use std::{collections::VecDeque, path::Path, sync::Arc};

use bytes::Bytes;
use vitrine_engine::{
    error::{Kind, Result},
    format::Order,
    io::{Feed, Fetch, Keep, ReadAt, Spill, Window, WindowLimits},
    model::{Limits, OutputFormat},
    pipeline::Imported,
};

use super::{
    bytes, content, content_of,
    made::{Stream, descriptor},
    walk,
};
use crate::{
    qemu::Qemu,
    support::{Bytestream, job, memory, run, stored},
};

/// 70 MiB: three tables, of which the second has no grain.
const CAPACITY: u64 = 70 << 11;

fn grain(number: u64) -> Vec<u8> {
    bytes(u32::try_from(number).unwrap() + 1, 65_536, number.is_multiple_of(2))
}

const NUMBERS: [u64; 6] = [0, 1, 7, 511, 1024, 1119];

fn disk() -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(CAPACITY * 512).unwrap()];
    for number in NUMBERS {
        disk[usize::try_from(number).unwrap() * 65_536..][..65_536].copy_from_slice(&grain(number));
    }
    disk
}

fn add(stream: &mut Stream, numbers: &[u64]) {
    for number in numbers {
        stream.grain(*number, &grain(*number));
    }
}

/// Each table behind its grains, none for the second.
fn vmware() -> Stream {
    let mut stream = Stream::new(CAPACITY);
    add(&mut stream, &NUMBERS[..4]);
    stream.table(0);
    add(&mut stream, &NUMBERS[4..]);
    stream.table(2).end();
    stream
}

/// The forms that writers give to one disk.
fn forms() -> Vec<(&'static str, Bytes)> {
    let mut empty = Stream::new(CAPACITY);
    add(&mut empty, &NUMBERS[..4]);
    empty.table(0).table(1);
    add(&mut empty, &NUMBERS[4..]);
    empty.table(2).end();
    let mut last = Stream::new(CAPACITY);
    add(&mut last, &NUMBERS);
    last.table(2).table(0).end();
    let mut zeroed = Stream::new(CAPACITY);
    zeroed.bytes[8] |= 4;
    add(&mut zeroed, &NUMBERS);
    zeroed.entry(3, 1).entry(513, 1).table(0).table(1).table(2).end();
    // A machine that is backed up by its changes: the name of the file that remembers them stays in what is exported.
    let text =
        descriptor("streamOptimized", CAPACITY).replace("createType=", "changeTrackPath=\"a-ctk.vmdk\"\ncreateType=");
    let mut tracked = Stream::with_descriptor(CAPACITY, &text);
    add(&mut tracked, &NUMBERS);
    tracked.table(0).table(1).table(2).end();
    vec![
        ("as VMware writes it", vmware().bytes.into()),
        ("with changes tracked", tracked.bytes.into()),
        ("with an empty table", empty.bytes.into()),
        ("with its tables at the end", last.bytes.into()),
        ("with grains of zeros", zeroed.bytes.into()),
    ]
}

struct Pieces(VecDeque<Bytes>);

impl Feed for Pieces {
    fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.pop_front())
    }
}

/// A stream over `data` that keeps next to nothing in memory.
fn window(data: &Bytes, fetch: Option<Fetch>, length: Option<u64>) -> Window<Pieces> {
    let pieces = (0..data.len()).step_by(7777).map(|at| data.slice(at..data.len().min(at + 7777))).collect();
    let limits = WindowLimits { memory: 1 << 20, tables: 1 << 20 };
    Window::new(Pieces(pieces), length, Keep::Unread, Spill::new(&std::env::temp_dir(), 1 << 30), limits, fetch)
}

#[test]
fn every_form_is_read_in_both_orders_as_qemu_reads_it() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let expected = disk();
    for (name, stream) in forms() {
        for order in [Order::Tables, Order::Stream] {
            let found = content_of(&stream, order).unwrap_or_else(|e| panic!("{name}, {order:?}: {e}"));
            assert!(found == expected, "{name}, {order:?}");
        }
        std::fs::write(&image, &stream).unwrap();
        qemu.img(&["convert", "-f", "vmdk", "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
        assert!(std::fs::read(&raw).unwrap() == expected, "{name}: qemu-img reads something else");
        assert!(crate::disk::refusals(&mut crate::disk::Memory::new(stream), None).is_empty(), "{name}");
    }
}

#[test]
fn a_stream_is_read_once_and_nothing_waits_on_disk() {
    let expected = disk();
    for (name, stream) in forms() {
        for (most, length) in [(u64::MAX, None), (30_000, Some(stream.len() as u64))] {
            let never: Fetch = Box::new(|_, _| panic!("a stream in order needs no ranges"));
            let mut window = window(&stream, length.map(|_| never), length);
            let mut found = vec![0; expected.len()];
            let size = walk(&mut window, Order::Stream, most, &Limits::default(), |at, bytes| {
                found[usize::try_from(at).unwrap()..][..bytes.len()].copy_from_slice(bytes);
            });
            assert_eq!(size.unwrap(), expected.len() as u64, "{name}");
            assert!(found == expected, "{name}");
            assert_eq!(window.spilled(), 0, "{name}");
        }
    }
}

/// Grains in another order than the guest's, each table before its last grain.
fn unordered() -> Stream {
    let mut stream = Stream::new(CAPACITY);
    for number in NUMBERS.iter().rev() {
        stream.grain(*number, &grain(*number));
    }
    stream.table(0).table(2).end();
    stream
}

#[test]
fn grains_out_of_order_are_read_by_tables() {
    let stream: Bytes = unordered().bytes.into();
    assert_eq!(content_of(&stream, Order::Stream).unwrap_err().kind(), Kind::NeedsSpill);
    assert!(content_of(&stream, Order::Tables).unwrap() == disk());
    // A stream whose end has to be seen first.
    let mut window = window(&stream, None, None);
    window.keep(Keep::All);
    assert!(content(&mut window, Order::Tables, u64::MAX).unwrap() == disk());
}

async fn import_of(bytes: Vec<u8>, ranged: bool, sized: bool) -> (Vec<u8>, Imported, usize) {
    let store = memory();
    let mut source = Bytestream::new(bytes);
    source.sized = sized;
    let source = Arc::new(if ranged { source.ranged() } else { source });
    let mut job = job(Bytestream::new(Vec::new()), vec![(store.clone(), OutputFormat::RAW)]);
    job.source = source.clone();
    let imported = run(&job).await.unwrap();
    (stored(&*store).await, imported, source.opened.load(std::sync::atomic::Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_open_an_ordered_stream_once_and_another_one_twice() {
    for (stream, times) in [(vmware(), 1), (unordered(), 2)] {
        for (ranged, sized) in [(false, false), (false, true), (true, true)] {
            let (raw, imported, opened) = import_of(stream.bytes.clone(), ranged, sized).await;
            assert!(raw == disk(), "ranged: {ranged}, sized: {sized}");
            assert_eq!(opened, times, "ranged: {ranged}, sized: {sized}");
            assert_eq!(imported.virtual_size, CAPACITY * 512);
        }
    }
}

/// An import of what can be read only once, with room for so many bytes in the spill file and next to none in memory.
async fn import_once(bytes: Vec<u8>, room: u64) -> Result<Vec<u8>> {
    let store = memory();
    let mut source = Bytestream::new(bytes);
    (source.once, source.sized) = (true, false);
    let mut job = job(source, vec![(store.clone(), OutputFormat::RAW)]);
    (job.limits.window_memory, job.limits.max_spill) = (64 << 10, room);
    run(&job).await?;
    Ok(stored(&*store).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_only_once_is_kept_in_case_its_grains_are_out_of_order() {
    for stream in [vmware(), unordered()] {
        assert!(import_once(stream.bytes, 1 << 30).await.unwrap() == disk());
    }
}

/// Grains of noise up to the end of the disk, so that it is much larger than what waits in memory.
fn noisy(numbers: impl Iterator<Item = u64>) -> Stream {
    let mut stream = Stream::new(CAPACITY);
    for number in numbers {
        stream.grain(number, &bytes(u32::try_from(number).unwrap() + 1, 65_536, true));
    }
    stream.table(0).table(1).table(2).end();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_order_needs_no_room_and_another_one_says_what_it_needs() {
    let in_order = import_once(noisy(0..1120).bytes, 1 << 20).await.unwrap();
    assert_eq!(in_order.len() as u64, CAPACITY * 512);
    assert!(in_order[1119 << 16..] == bytes(1120, 65_536, true));
    let last_first = || noisy((1..1120).chain([0]));
    let error = import_once(last_first().bytes, 1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    let text = error.to_string();
    assert!(text.contains("memory can be read only once") && text.contains("max-spill"), "{text}");
    assert!(import_once(last_first().bytes, 1 << 30).await.unwrap() == in_order);
}

/// qemu-img's streams have their tables in front and their last grain only as far as the disk goes.
#[tokio::test(flavor = "multi_thread")]
async fn imports_read_the_streams_of_qemu_once() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let mut disk = bytes(3, 40 << 20, false);
    disk.extend(bytes(4, 1000 * 512, true));
    std::fs::write(&raw, &disk).unwrap();
    for options in ["subformat=streamOptimized", "subformat=monolithicSparse"] {
        qemu.img(&["convert", "-O", "vmdk", "-o", options, path(&raw), path(&image)]);
        for ranged in [false, true] {
            let (found, _, opened) = import_of(std::fs::read(&image).unwrap(), ranged, true).await;
            assert!(found == disk, "{options}");
            assert_eq!(opened, 1, "{options}");
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_that_tells_no_length_is_asked_for_its_end_first() {
    let stream: Bytes = vmware().bytes.into();
    let mut window = window(&stream, None, None);
    window.keep(Keep::All);
    assert!(window.length().is_none());
    assert!(content(&mut window, Order::Tables, 1 << 20).unwrap() == disk());
}

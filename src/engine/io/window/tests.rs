use std::sync::Arc;

use super::*;

struct Pieces(VecDeque<Bytes>);

impl Feed for Pieces {
    fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.pop_front())
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

fn window(data: &[u8], piece: usize, memory: u64, keep: Keep, fetch: Option<Fetch>) -> Window<Pieces> {
    let pieces = data.chunks(piece).map(Bytes::copy_from_slice).collect();
    let spill = Spill::new(&std::env::temp_dir(), 1 << 30);
    let length = Some(data.len() as u64);
    Window::new(Pieces(pieces), length, keep, spill, WindowLimits { memory, tables: 1 << 20 }, fetch)
}

#[test]
fn in_order_reads_spill_nothing() {
    let data = bytes(100_000);
    let mut window = window(&data, 1000, 4000, Keep::Unread, None);
    for (i, expected) in data.chunks(777).enumerate() {
        assert_eq!(&window.read_up_to(i as u64 * 777, 777).unwrap()[..], expected);
    }
    assert_eq!(window.spilled(), 0);
    window.finish().unwrap();
}

#[test]
fn what_waits_too_long_waits_on_disk() {
    let data = bytes(100_000);
    let mut window = window(&data, 1000, 4000, Keep::Unread, None);
    for (i, expected) in data.chunks(5000).enumerate().collect::<Vec<_>>().into_iter().rev() {
        assert_eq!(&window.read_up_to(i as u64 * 5000, 5000).unwrap()[..], expected);
    }
    assert!(window.spilled() > 80_000);
}

#[test]
fn reading_twice_needs_everything_kept() {
    let data = bytes(50_000);
    let mut once = window(&data, 1000, 4000, Keep::Unread, None);
    once.read_up_to(0, 40_000).unwrap();
    once.read_up_to(40_000, 10_000).unwrap();
    assert_eq!(once.spilled(), 0);
    assert_eq!(once.read_up_to(10, 10).unwrap_err().kind(), Kind::NeedsSpill);
    let mut all = window(&data, 1000, 4000, Keep::All, None);
    all.read_up_to(0, 40_000).unwrap();
    all.read_up_to(40_000, 10_000).unwrap();
    assert_eq!(&all.read_up_to(10, 10).unwrap()[..], &data[10..20]);
}

#[test]
fn a_small_part_does_not_keep_its_piece() {
    struct Counted(Vec<u8>, #[expect(dead_code, reason = "counts who is alive")] Arc<()>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let alive = Arc::new(());
    let pieces = (0..100).map(|_| Bytes::from_owner(Counted(bytes(1000), alive.clone()))).collect();
    let spill = Spill::new(&std::env::temp_dir(), 1 << 30);
    let limits = WindowLimits { memory: 4000, tables: 0 };
    let mut window = Window::new(Pieces(pieces), None, Keep::Unread, spill, limits, None);
    let small: Vec<_> = (0..50).map(|i| window.read_up_to(i * 1000, 499).unwrap()).collect();
    let parts: Vec<_> = (50..99).flat_map(|i| window.read_pieces(i * 1000, 499).unwrap()).collect();
    window.finish().unwrap();
    assert_eq!(Arc::strong_count(&alive), 1, "pieces are kept by {} parts", small.len() + parts.len());
}

#[test]
fn the_spill_file_knows_a_stretch_for_each_piece_at_most() {
    let data = bytes(100_000);
    let mut window = window(&data, 1000, 4000, Keep::Unread, None);
    for at in (0..100_000).step_by(20) {
        window.read_up_to(at, 10).unwrap();
    }
    assert!(window.spill.stretches() <= 100, "{}", window.spill.stretches());
    assert_eq!(&window.read_up_to(50, 5).unwrap()[..], &data[50..55]);
}

#[test]
fn the_end_is_short_not_an_error() {
    let data = bytes(1500);
    let mut window = window(&data, 1000, 4000, Keep::Unread, None);
    assert_eq!(window.read_up_to(1400, 500).unwrap().len(), 100);
    assert!(window.read_up_to(5000, 10).unwrap().is_empty());
}

#[test]
fn a_spill_has_its_limit() {
    let data = bytes(100_000);
    let pieces = Pieces(data.chunks(1000).map(Bytes::copy_from_slice).collect());
    let limits = WindowLimits { memory: 4000, tables: 0 };
    let spill = Spill::new(&std::env::temp_dir(), 10_000);
    let mut window = Window::new(pieces, Some(100_000), Keep::Unread, spill, limits, None);
    let error = window.read_up_to(99_000, 10).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
}

fn fetcher(data: &[u8]) -> Fetch {
    let data = Bytes::copy_from_slice(data);
    Box::new(move |offset, length| {
        let start = usize::try_from(offset).unwrap();
        Ok(Some(data.slice(start..start + usize::try_from(length).unwrap())))
    })
}

#[test]
fn a_table_that_cannot_be_fetched_comes_with_the_stream() {
    let data = bytes(6 << 20);
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let none: Fetch = Box::new(move |_, _| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(None)
    });
    let mut window = window(&data, 100_000, 1 << 20, Keep::Unread, Some(none));
    for far in [5 << 20, (5 << 20) + 1000] {
        assert_eq!(&window.tables().read_up_to(far as u64, 1000).unwrap()[..], &data[far..far + 1000]);
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1, "once is enough to know");
    assert_eq!(&window.read_up_to(0, 1000).unwrap()[..], &data[..1000]);
    window.finish().unwrap();
}

#[test]
fn what_is_only_asked_about_can_still_be_read_once() {
    let data = bytes(6 << 20);
    let mut window = window(&data, 1000, 1 << 20, Keep::Unread, None);
    window.length = None;
    assert_eq!(window.available(0, 3 << 20).unwrap(), 3 << 20);
    assert_eq!(&window.read_up_to(0, 3 << 20).unwrap()[..], &data[..3 << 20]);
    assert_eq!(window.available(3 << 20, 4 << 20).unwrap(), 3 << 20, "the end is nearer");
    assert_eq!(window.available(7 << 20, 10).unwrap(), 0);
    assert_eq!(&window.read_up_to(3 << 20, 3 << 20).unwrap()[..], &data[3 << 20..]);
    assert_eq!(window.spilled(), 0);
}

#[test]
fn reading_ahead_never_goes_through_the_stream() {
    let data = bytes(6 << 20);
    let far = (6 << 20) - 512;
    let mut ranged = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&data)));
    assert_eq!(&ranged.tables().read_ahead(far, 512).unwrap().unwrap()[..], &data[data.len() - 512..]);
    let cannot: Fetch = Box::new(|_, _| Ok(None));
    let mut claimed = window(&data, 100_000, 1 << 20, Keep::Unread, Some(cannot));
    let mut plain = window(&data, 100_000, 1 << 20, Keep::Unread, None);
    for window in [&mut claimed, &mut plain] {
        assert_eq!(window.tables().read_ahead(far, 512).unwrap(), None);
    }
    for window in [ranged, claimed, plain] {
        assert_eq!((window.spilled(), window.held.end), (0, 0), "the stream must not move");
    }
}

#[test]
fn far_tables_are_fetched_and_compared() {
    let data = bytes(6 << 20);
    let far = (5 << 20) as u64;
    let mut same = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&data)));
    assert_eq!(&same.tables().read_up_to(far, 1000).unwrap()[..], &data[5 << 20..(5 << 20) + 1000]);
    assert_eq!((same.spilled(), same.held.end), (0, 0), "the stream must not move for a far table");
    same.finish().unwrap();

    let mut other = data.clone();
    other[(5 << 20) + 999] ^= 1;
    let mut lied = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&other)));
    lied.tables().read_up_to(far, 1000).unwrap();
    assert_eq!(lied.finish().unwrap_err().kind(), Kind::Changed);
    let mut seen = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&other)));
    seen.tables().read_up_to(far, 1000).unwrap();
    assert_eq!(seen.read_up_to(0, data.len()).unwrap_err().kind(), Kind::Changed);
}

#[test]
fn a_table_that_the_stream_never_brought_is_no_table() {
    let data = bytes(6 << 20);
    let far = (5 << 20) as u64;
    let mut ends_early = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&data)));
    ends_early.feed.0.truncate(50);
    ends_early.tables().read_up_to(far, 1000).unwrap();
    assert_eq!(ends_early.finish().unwrap_err().kind(), Kind::Changed);
}

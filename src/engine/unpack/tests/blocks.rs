//! Streams of xz in several blocks, as the tool writes them.

use super::*;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A tool's xz file with blocks of 1 MiB, and what is in it.
fn blocks() -> (Vec<u8>, Vec<u8>) {
    let data = [sample(), sample(), sample(), sample()].concat();
    let packed = tool(&data, "xz -T2 -0 --block-size=1MiB -k disk", "disk.xz");
    assert!(xz::fits(&packed, &UnpackLimits { threads: 2, ..limits() }), "it is not what the test is for");
    (data, packed)
}

#[test]
fn blocks_that_tell_their_lengths_are_decoded_side_by_side() {
    let (data, packed) = blocks();
    let wide = UnpackLimits { threads: 4, ..limits() };
    for piece in [1, 777, packed.len()] {
        assert!(unpack_with(Packing::Xz, &packed, piece, wide).unwrap() == data, "{piece}");
    }
    let twice = [&packed[..], &[0; 4], &packed[..]].concat();
    assert!(unpack_with(Packing::Xz, &twice, 4096, wide).unwrap() == data.repeat(2));
    for check in ["none", "crc32", "crc64", "sha256"] {
        let packed = tool(&data, &format!("xz -T2 -0 --block-size=1MiB --check={check} -k disk"), "disk.xz");
        assert!(unpack_with(Packing::Xz, &packed, 4096, wide).unwrap() == data, "{check}");
    }
    // The second block is left to be decoded alone: it has no room beside the first.
    let mixed = [vec![0; 24 << 20], noise(30 << 20)].concat();
    let packed = tool(&mixed, "xz -T2 -0 --block-size=24MiB -k disk", "disk.xz");
    assert!(xz::fits(&packed, &wide));
    assert!(unpack_with(Packing::Xz, &packed, 1 << 18, wide).unwrap() == mixed);
}

/// The blocks of files that `xz` made, with the same check, as one stream: only its index and its footer are written here.
fn spliced(files: &[&[u8]]) -> Vec<u8> {
    let number = |bytes: &mut Vec<u8>, mut value: u64| {
        while value >= 0x80 {
            bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        bytes.push(u8::try_from(value).unwrap());
    };
    let checked = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        [&crc.sum().to_le_bytes(), bytes].concat()
    };
    let (mut stream, mut records, mut count) = (files[0][..12].to_vec(), Vec::new(), 0);
    for file in files {
        let list = tool(file, "mv disk disk.xz; xz --robot --list -vv disk.xz > list", "list");
        for line in String::from_utf8(list).unwrap().lines().filter(|line| line.starts_with("block")) {
            let field = |n: usize| line.split('\t').nth(n).unwrap().parse::<u64>().unwrap();
            let start = usize::try_from(field(4)).unwrap();
            stream.extend(&file[start..start + usize::try_from(field(6)).unwrap()]);
            // Header, data, and the 8 bytes of a CRC64.
            number(&mut records, field(11) + field(13) + 8);
            number(&mut records, field(7));
            count += 1;
        }
    }
    let mut index = vec![0];
    number(&mut index, count);
    index.extend(records);
    index.resize(index.len().next_multiple_of(4), 0);
    let (backward, flags) = (u32::try_from(index.len() / 4).unwrap(), [stream[6], stream[7]]);
    let sum = checked(&index)[..4].to_vec();
    stream.extend([index, sum].concat());
    stream.extend(checked(&[&backward.to_le_bytes()[..], &flags].concat()));
    stream.extend(b"YZ");
    stream
}

#[test]
fn blocks_that_do_not_tell_their_lengths_may_stand_among_those_that_do() {
    let (data, told) = blocks();
    let wide = UnpackLimits { threads: 4, ..limits() };
    let untold = tool(&data, "xz -T1 -0 -k disk", "disk.xz");
    let several = tool(&data, "xz -T1 -0 --block-size=300KiB --x86 --lzma2=preset=0 -k disk", "disk.xz");
    let stored = tool(&noise(3 << 20), "xz -T1 -0 -k disk", "disk.xz");
    let costly = tool(&noise(37 << 20), "xz -T2 -0 --block-size=64MiB -k disk", "disk.xz");
    let (small, large) = (noise(3 << 20), noise(37 << 20));
    for (files, contents, pieces) in [
        (&[&told[..], &untold, &told][..], [&data[..], &data, &data].concat(), &[1, 777][..]),
        (&[&told, &several, &stored, &told, &untold], [&data[..], &data, &small, &data, &data].concat(), &[4096]),
        (&[&told, &costly], [&data[..], &large].concat(), &[1 << 18]),
    ] {
        let packed = spliced(files);
        assert!(xz::fits(&packed, &wide), "it is not what the test is for");
        assert!(tool(&packed, "xz -dc < disk > out", "out") == contents, "xz must read it, too");
        for piece in pieces {
            assert!(unpack_with(Packing::Xz, &packed, *piece, wide).unwrap() == contents, "in pieces of {piece}");
        }
    }
    for twice in [[&told[..], &untold], [&untold, &told], [&several, &told]] {
        assert!(unpack_with(Packing::Xz, &twice.concat(), 4096, wide).unwrap() == data.repeat(2));
    }
}

#[test]
fn damage_in_a_block_among_others_is_noticed() {
    let (data, told) = blocks();
    let wide = UnpackLimits { threads: 4, ..limits() };
    let untold = tool(&data, "xz -T1 -0 -k disk", "disk.xz");
    let packed = spliced(&[&told, &untold, &told]);
    // Where the second file's block begins; its header has 12 bytes, and that of its first chunk 6.
    let block = packed.windows(12).position(|bytes| *bytes == untold[12..24]).unwrap();
    let end = block + untold.len() - 12 - 12 - 4 - 12;
    for place in [
        block + 1,
        block + 12,
        block + 13,
        block + 14,
        block + 15,
        block + 1000,
        end - 1,
        packed.len() - told.len() / 2,
    ] {
        let mut damaged = packed.clone();
        damaged[place] ^= 4;
        let error = unpack_with(Packing::Xz, &damaged, 4096, wide).expect_err(&format!("{place}"));
        assert!(broken(&error), "{place}: {error}");
    }
    for cut in [block + 1, block + 12, block + 16, block + 1000, end - 1] {
        let error = unpack_with(Packing::Xz, &packed[..cut], 4096, wide).unwrap_err();
        assert!(broken(&error) && error.to_string().contains("ends in the middle"), "{cut}: {error}");
    }
    let little = UnpackLimits { memory: 100 << 10, ..wide };
    let error = unpack_with(Packing::Xz, &packed, 4096, little).unwrap_err();
    assert!(error.to_string().contains("larger dictionary"), "{error}");
}

#[test]
fn damage_in_blocks_side_by_side_is_noticed() {
    let (data, packed) = blocks();
    let wide = UnpackLimits { threads: 4, ..limits() };
    let index = packed.len()
        - 12
        - 4 * (1 + usize::try_from(u32::from_le_bytes(packed[packed.len() - 8..][..4].try_into().unwrap())).unwrap());
    // In a block, its check (the last bytes before the index), every byte of the index and the footer.
    let places = [30, 1000, packed.len() / 2, index - 1, index - 8].into_iter().chain(index..packed.len());
    for place in places {
        let mut damaged = packed.clone();
        damaged[place] ^= 4;
        assert!(broken(&unpack_with(Packing::Xz, &damaged, 4096, wide).expect_err(&format!("{place}"))), "{place}");
    }
    for cut in [13, 40, 1000, packed.len() / 2, index, index + 3, packed.len() - 12, packed.len() - 1] {
        let error = unpack_with(Packing::Xz, &packed[..cut], 4096, wide).unwrap_err();
        assert!(broken(&error) && error.to_string().contains("ends in the middle"), "{cut}: {error}");
    }
    // Blocks in another order than the index has them, and one left out.
    let first = 12;
    let block = xz::padded_length(&packed[first..], &packed[..12]).unwrap();
    let missing = [&packed[..first], &packed[first + block..]].concat();
    assert!(broken(&unpack_with(Packing::Xz, &missing, 4096, wide).unwrap_err()));
    assert!(!data.is_empty());
}

#[test]
fn a_reader_who_leaves_does_not_keep_the_threads() {
    let (_, packed) = blocks();
    let mut feed = unpacker(
        Packing::Xz,
        Box::new(Pieces { data: packed.into(), piece: 4096 }),
        UnpackLimits { threads: 2, ..limits() },
    );
    assert!(feed.next().unwrap().is_some());
    drop(feed);
}

//! Real streams, made by the libraries' own encoders, whole and broken.

use std::io::Write;

use bytes::Bytes;
use liblzma::stream::MtStreamBuilder;

use super::*;
use crate::{
    error::{Error, Kind, Result},
    model::Rule,
};

/// Gives `data` in pieces of `piece` bytes.
struct Pieces {
    data: Bytes,
    piece: usize,
}

impl Feed for Pieces {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let length = self.piece.min(self.data.len());
        Ok((length > 0).then(|| self.data.split_to(length)))
    }
}

fn limits() -> UnpackLimits {
    UnpackLimits::new(&Limits::default())
}

fn unpack_with(packing: Packing, data: &[u8], piece: usize, limits: UnpackLimits) -> Result<Vec<u8>> {
    let mut feed = unpacker(packing, Box::new(Pieces { data: Bytes::copy_from_slice(data), piece }), limits);
    let mut all = Vec::new();
    while let Some(bytes) = feed.next()? {
        assert!(!bytes.is_empty() && bytes.len() <= 1 << 20);
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

fn unpack(packing: Packing, data: &[u8]) -> Result<Vec<u8>> {
    unpack_with(packing, data, 1000, limits())
}

fn broken(error: &Error) -> bool {
    error.kind() == Kind::Refused && error.violation().unwrap().rule == Rule::CompressedStream
}

fn pack(packing: Packing, data: &[u8]) -> Vec<u8> {
    match packing {
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Xz => liblzma::encode_all(data, 0).unwrap(),
        Packing::Zstd => zstd::encode_all(data, 1).unwrap(),
        Packing::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
    }
}

const ALL: [Packing; 4] = [Packing::Gzip, Packing::Xz, Packing::Zstd, Packing::Bzip2];

/// Text-like bytes with a long run of zeros, more than one piece of output.
fn sample() -> Vec<u8> {
    let mut data: Vec<u8> = (0..700_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 27) as u8).collect();
    data.resize(1_500_000, 0);
    data.extend((0..100_000_u32).map(|i| (i % 7) as u8));
    data
}

#[test]
fn whole_streams_come_out_whole_however_they_arrive() {
    let data = sample();
    for packing in ALL {
        let packed = pack(packing, &data);
        assert_eq!(detect(&packed), Some(packing));
        for piece in [1, 13, 4096, packed.len()] {
            assert!(unpack_with(packing, &packed, piece, limits()).unwrap() == data, "{packing} in pieces of {piece}");
        }
    }
}

#[test]
fn blocks_side_by_side_come_out_in_order() {
    let data = [sample(), sample(), sample()].concat();
    let stream = MtStreamBuilder::new().threads(2).preset(0).block_size(256 << 10).encoder().unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(&data).unwrap();
    let packed = encoder.finish().unwrap();
    for (threads, piece) in [(1, 5000), (2, 5000), (4, packed.len())] {
        assert!(unpack_with(Packing::Xz, &packed, piece, UnpackLimits { threads, ..limits() }).unwrap() == data);
    }
    let error = unpack(Packing::Xz, &packed[..packed.len() / 2]).unwrap_err();
    assert!(broken(&error) && error.to_string().contains("ends in the middle"), "{error}");
    let mut damaged = packed.clone();
    damaged[packed.len() / 2] ^= 0x5a;
    assert!(broken(&unpack(Packing::Xz, &damaged).unwrap_err()));
}

#[test]
fn several_members_and_padding_are_one_stream() {
    let data = sample();
    for packing in ALL {
        let mut packed = pack(packing, &data);
        packed.extend(pack(packing, b""));
        packed.extend(pack(packing, b"second"));
        packed.extend([0; 8]);
        packed.extend(pack(packing, b"third"));
        packed.extend([0; 1024]);
        let wanted = [&data[..], b"second", b"third"].concat();
        assert!(unpack(packing, &packed).unwrap() == wanted, "{packing}");
    }
}

#[test]
fn a_cut_anywhere_is_noticed() {
    for packing in ALL {
        let packed = pack(packing, b"some words, some more words, and a few more of the words");
        for length in 0..packed.len() {
            let error = unpack(packing, &packed[..length]).expect_err(&format!("{packing} cut at {length}"));
            assert!(broken(&error), "{packing} cut at {length}: {error}");
        }
    }
}

#[test]
fn a_cut_of_a_long_stream_says_where() {
    for packing in ALL {
        let packed = pack(packing, &sample());
        let error = unpack(packing, &packed[..packed.len() - 3]).unwrap_err();
        let text = error.to_string();
        assert!(
            broken(&error)
                && text.contains("ends in the middle")
                && text.contains(&format!("byte {}", packed.len() - 3)),
            "{text}"
        );
    }
}

#[test]
fn damage_is_noticed() {
    for packing in ALL {
        let packed = pack(packing, &sample());
        // zstd's library writes no content checksum unless asked, so only its structure can be damaged noticeably.
        let places: &[usize] = if packing == Packing::Zstd { &[4] } else { &[packed.len() / 2, packed.len() - 6] };
        for place in places {
            let mut damaged = packed.clone();
            damaged[*place] ^= 0x5a;
            assert!(broken(&unpack(packing, &damaged).unwrap_err()), "{packing} at {place}");
        }
    }
}

#[test]
fn what_follows_must_be_a_member_or_zeros() {
    for packing in ALL {
        let mut packed = pack(packing, b"words");
        packed.extend(b"\0\0\0\0garbage that is long enough for every header");
        let error = unpack(packing, &packed).unwrap_err();
        assert!(broken(&error) && error.to_string().contains("after 1 complete parts"), "{packing}: {error}");
    }
}

#[test]
fn output_is_bounded() {
    let packed = pack(Packing::Gzip, &vec![0; 8 << 20]);
    let small = UnpackLimits { max_output: 1 << 20, ..limits() };
    let error = unpack_with(Packing::Gzip, &packed, 1000, small).unwrap_err();
    assert_eq!(error.violation().unwrap().rule, Rule::Bomb);
    assert_eq!(unpack(Packing::Gzip, &packed).unwrap().len(), 8 << 20);
}

/// What the limit on zeros stands on: all but bzip2 keep below it by far.
#[test]
fn only_bzip2_makes_more_zeros_of_a_byte_than_any_image_has() {
    let zeros = vec![0; 64 << 20];
    for packing in ALL {
        let ratio = zeros.len() / pack(packing, &zeros).len();
        assert_eq!(ratio > 100_000, packing == Packing::Bzip2, "{packing}: {ratio}");
        assert!(ratio < 40_000 || packing == Packing::Bzip2, "{packing}: {ratio}");
    }
    let bomb = pack(Packing::Bzip2, &zeros).repeat(17);
    let mut feed = unpacker(Packing::Bzip2, Box::new(Pieces { data: bomb.into(), piece: 1000 }), limits());
    let mut given = 0;
    let error = loop {
        match feed.next() {
            Ok(piece) => given += piece.expect("it must not come to its end").len(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.violation().unwrap().rule, Rule::Bomb);
    assert!(given >= 1 << 30, "{given}");
}

#[test]
fn memory_is_bounded() {
    let small = UnpackLimits { memory: 1 << 20, parallel_memory: 1 << 20, ..limits() };
    // A dictionary of 8 MiB, and a window of 8 MiB that the frame's size does not shrink.
    let xz = liblzma::encode_all(&sample()[..], 6).unwrap();
    let mut encoder = zstd::Encoder::new(Vec::new(), 19).unwrap();
    encoder.write_all(&sample()).unwrap();
    let zstd = encoder.finish().unwrap();
    for (packing, packed) in [(Packing::Xz, xz), (Packing::Zstd, zstd)] {
        let error = unpack_with(packing, &packed, 1000, small).unwrap_err();
        assert!(broken(&error) && error.to_string().contains("memory"), "{packing}: {error}");
        assert!(unpack(packing, &packed).unwrap() == sample(), "{packing}");
    }
}

#[test]
fn disks_are_not_taken_for_packed_streams() {
    let boot_sector = [&[0xeb, 0x63, 0x90][..], &[0; 509]].concat();
    for head in [&b""[..], b"QFI\xfb\0\0\0\x03", &boot_sector, &[0; 64], b"BZh9 is how this text begins", b"PK\x03\x04"]
    {
        assert_eq!(detect(head), None, "{head:?}");
    }
    // One bit from the real thing.
    for packing in ALL {
        let mut head = pack(packing, b"words");
        head[if packing == Packing::Gzip { 3 } else { 4 }] ^= 0x88;
        assert_eq!(detect(&head), None, "{packing}");
    }
    let mut xz = pack(Packing::Xz, b"words");
    xz[8] ^= 1;
    assert_eq!(detect(&xz), None, "the checksum of xz's header is looked at");
}

#[test]
fn a_skippable_frame_before_a_frame_is_zstd() {
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"abcd"].concat();
    let packed = [skippable.clone(), pack(Packing::Zstd, b"words")].concat();
    assert_eq!(detect(&packed), Some(Packing::Zstd));
    assert_eq!(unpack(Packing::Zstd, &packed).unwrap(), b"words");
    assert_eq!(detect(&[skippable, vec![0; 64]].concat()), None);
}

#[test]
fn packed_in_packed_is_refused() {
    let twice = pack(Packing::Gzip, &pack(Packing::Xz, b"words"));
    let inner = unpack(Packing::Gzip, &twice).unwrap();
    let violation = check_not_nested(Packing::Gzip, &inner[..HEAD.min(inner.len())]).unwrap_err();
    assert_eq!((violation.rule, violation.value.as_str()), (Rule::NestedCompression, "xz in gzip"));
    assert!(check_not_nested(Packing::Gzip, b"QFI\xfb").is_ok());
}

#[test]
fn an_error_of_the_source_stays_what_it_is() {
    struct Failing;
    impl Feed for Failing {
        fn next(&mut self) -> Result<Option<Bytes>> {
            Err(Error::new(Kind::Unavailable, "cut"))
        }
    }
    for packing in ALL {
        assert_eq!(unpacker(packing, Box::new(Failing), limits()).next().unwrap_err().kind(), Kind::Unavailable);
    }
}

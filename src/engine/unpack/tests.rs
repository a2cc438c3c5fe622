//! Real streams, made by the libraries' own encoders, whole and broken.

use std::io::Write;

use bytes::Bytes;
use liblzma::stream::MtStreamBuilder;

use super::*;
use crate::{
    error::{Error, Kind, Result},
    model::Rule,
};

mod blocks;

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
        Packing::Lz4 | Packing::Zip => unreachable!("made by tools"),
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

/// Runs a tool in a folder with `data` as the file `disk` and gives the file `made`.
fn tool(data: &[u8], script: &str, made: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("disk"), data).unwrap();
    let output = std::process::Command::new("sh").current_dir(folder.path()).args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(folder.path().join(made)).unwrap()
}

fn refusal(packing: Packing, data: &[u8]) -> (Rule, String) {
    let violation = unpack(packing, data).unwrap_err().violation().unwrap().clone();
    (violation.rule, violation.field)
}

#[test]
fn lz4_as_the_tool_writes_it() {
    let data = sample();
    for options in ["", "-1 -B4 -BD", "-9 -B7 -BX", "-B5 --content-size", "--no-frame-crc", "-BD -BX -12"] {
        let packed = tool(&data, &format!("lz4 -q {options} disk disk.lz4"), "disk.lz4");
        assert_eq!(detect(&packed), Some(Packing::Lz4), "{options}");
        for piece in [1000, packed.len()] {
            assert!(unpack_with(Packing::Lz4, &packed, piece, limits()).unwrap() == data, "{options}");
        }
        for place in [5, packed.len() / 2] {
            let mut damaged = packed.clone();
            damaged[place] ^= 0x10;
            let result = unpack(Packing::Lz4, &damaged);
            // Without a checksum of the content, only the blocks' structure shows damage.
            assert!(result.is_err() || (options == "--no-frame-crc" && place > 5), "{options} at {place}");
        }
    }
    let legacy = tool(&data, "lz4 -q -l disk disk.lz4", "disk.lz4");
    assert_eq!(detect(&legacy), Some(Packing::Lz4));
    assert!(unpack(Packing::Lz4, &legacy).unwrap_err().to_string().contains("legacy"));
}

#[test]
fn a_zip_archive_as_tools_write_it() {
    let data = sample();
    for script in [
        "zip -q a.zip disk",
        "zip -q -0 a.zip disk",
        "zip -q - disk > a.zip",
        "zip -q -fz a.zip disk",
        "cat disk | zip -q - - > a.zip",
        "mkdir d; mv disk d; zip -q -r a.zip d",
        "zip -q -z a.zip disk < /dev/null; printf 'a comment' | zip -q -z a.zip",
        "python3 -c \"import zipfile; z=zipfile.ZipFile('a.zip','w',8); z.write('disk'); z.close()\"",
        "python3 -c \"import zipfile,shutil; z=zipfile.ZipFile('a.zip','w',8); f=z.open('disk','w',force_zip64=True); \
         f.write(open('disk','rb').read()); f.close(); z.close()\"",
        "python3 -c \"import zipfile,sys; z=zipfile.ZipFile(sys.stdout.buffer,'w',8); z.write('disk'); z.close()\" | cat > a.zip",
    ] {
        let packed = tool(&data, script, "a.zip");
        assert_eq!(detect(&packed), Some(Packing::Zip), "{script}");
        for piece in [777, packed.len()] {
            assert!(unpack_with(Packing::Zip, &packed, piece, limits()).is_ok_and(|out| out == data), "{script}");
        }
        for cut in [10, 40, packed.len() / 2, packed.len() - 30, packed.len() - 1] {
            assert!(broken(&unpack(Packing::Zip, &packed[..cut]).unwrap_err()), "{script} cut at {cut}");
        }
        let tail = [&packed[..], b"tail"].concat();
        assert!(broken(&unpack(Packing::Zip, &tail).unwrap_err()), "{script}");
        assert!(broken(&unpack(Packing::Zip, &[&packed[..], &packed[..]].concat()).unwrap_err()), "{script}");
    }
}

#[test]
fn a_zip_archive_that_is_not_one_file_is_refused() {
    let data = sample();
    let refused = |script: &str| refusal(Packing::Zip, &tool(&data, script, "a.zip"));
    assert_eq!(refused("zip -q -P secret a.zip disk"), (Rule::Encrypted, "general purpose bit flag".into()));
    assert_eq!(refused("cp disk b; zip -q a.zip disk b"), (Rule::UnsupportedFormat, "members".into()));
    assert_eq!(refused("mkdir d; zip -q -r a.zip d"), (Rule::NotADisk, "members".into()));
    assert_eq!(refused("ln -s disk l; zip -q -y a.zip l").0, Rule::ExternalDataFile);
    assert_eq!(refused("zip -q -Z bzip2 a.zip disk").1, "compression method");
    let streamed = "python3 -c \"import zipfile,sys; z=zipfile.ZipFile(sys.stdout.buffer,'w',0); z.write('disk'); z.close()\" | cat > a.zip";
    assert_eq!(refused(streamed).0, Rule::UnsupportedFormat);
    let packed = tool(&data, "zip -q -0 a.zip disk", "a.zip");
    let mut split = b"PK\x07\x08".to_vec();
    split.extend(&packed);
    assert_eq!(detect(&split), Some(Packing::Zip));
    assert_eq!(refusal(Packing::Zip, &split), (Rule::UnsupportedFormat, "disk number".into()));
}

#[test]
fn a_central_directory_that_says_something_else_is_refused() {
    let packed = tool(&sample(), "zip -q -X a.zip disk", "a.zip");
    let central = packed.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let end = packed.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    // Name, method, checksum, lengths, offset; entries, length and offset of the directory.
    for place in [central + 46, central + 16, central + 20, central + 24, central + 42, end + 10, end + 12, end + 16] {
        let mut changed = packed.clone();
        changed[place] ^= 1;
        assert_eq!(refusal(Packing::Zip, &changed), (Rule::InvalidField, "central directory".into()), "{place}");
    }
    let mut parts = packed.clone();
    parts[end + 4] = 1;
    assert_eq!(refusal(Packing::Zip, &parts), (Rule::UnsupportedFormat, "disk number".into()));
    for place in [14, 22, packed.len() / 2] {
        let mut damaged = packed.clone();
        damaged[place] ^= 1;
        assert!(broken(&unpack(Packing::Zip, &damaged).unwrap_err()), "{place}");
    }
}

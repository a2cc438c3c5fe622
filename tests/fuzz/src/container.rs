//! Archives, and what describes the disks in them.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Kind, Result},
    io::ReadAt as _,
    model::{ContainerFormat, DigestAlgorithm, Inspection, Limits, ObjectKey, OutputFormat, Verdict},
    pipeline::{Import, Imported, InspectJob, Progress, Target, import, inspect},
    source::{Opened, RangeReader, Source},
    store::discard::Discard,
    unpack::tar::{Scan, next_member},
    verify::DigestSet,
};

use crate::{
    base, mend,
    sparse::{Input, Sparse},
};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// Bytes that come in one stream, and by range if they can.
#[derive(Clone)]
struct Memory {
    bytes: Bytes,
    ranged: bool,
}

#[async_trait]
impl Source for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    async fn open(&self) -> Result<Opened> {
        // So that nothing lines up with members by accident.
        const PIECE: usize = 777;
        let bytes = self.bytes.clone();
        let pieces = (0..bytes.len()).step_by(PIECE).map(move |at| Ok(bytes.slice(at..bytes.len().min(at + PIECE))));
        Ok(Opened {
            length: self.ranged.then_some(self.bytes.len() as u64),
            shows_cuts: true,
            stream: stream::iter(pieces).boxed(),
            ranges: self.ranged.then(|| Arc::new(self.clone()) as _),
        })
    }
}

#[async_trait]
impl RangeReader for Memory {
    async fn read_range(&self, offset: u64, length: u64) -> Result<Option<Bytes>> {
        let start = usize::try_from(offset).unwrap();
        Ok(Some(self.bytes.slice(start..start + usize::try_from(length).unwrap())))
    }
}

fn limits() -> Limits {
    Limits {
        max_virtual_size: 16 << 20,
        max_size: 1 << 20,
        max_table_memory: 1 << 20,
        window_memory: 256 << 10,
        max_spill: 16 << 20,
        ..Limits::default()
    }
}

/// An inspection, if it could be told.
pub(crate) fn inspected(bytes: &Bytes, ranged: bool, declared: Option<ContainerFormat>) -> Option<Inspection> {
    let job = InspectJob {
        source: Arc::new(Memory { bytes: bytes.clone(), ranged }),
        disk_format: None,
        container_format: declared,
        container_disk: None,
        limits: limits(),
        scratch: std::env::temp_dir(),
    };
    match RUNTIME.block_on(inspect(job, &CancellationToken::new())) {
        Ok(inspection) => {
            assert_eq!(inspection.reasons.is_empty(), inspection.verdict == Verdict::Accepted);
            Some(inspection)
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::NoSpace, "{error}");
            None
        }
    }
}

fn imported(bytes: &Bytes, ranged: bool, declared: Option<ContainerFormat>) -> Result<Imported> {
    let job = Import {
        source: Arc::new(Memory { bytes: bytes.clone(), ranged }),
        disk_format: None,
        container_format: declared,
        container_disk: None,
        checksums: Vec::new(),
        request: None,
        key: ObjectKey::new("fuzz", 1).unwrap(),
        attempt: 1,
        targets: vec![Target { store: Arc::new(Discard), output: OutputFormat::RAW }],
        require_all: true,
        permit: None,
        limits: limits(),
        scratch: std::env::temp_dir(),
        workers: 1,
    };
    RUNTIME.block_on(import(&job, &Arc::new(Progress::default()), &CancellationToken::new()))
}

/// Imports what was inspected; whether it was taken: nothing may be taken that inspection refuses, and what is taken is as inspection says.
fn check_import(bytes: &Bytes, ranged: bool, declared: Option<ContainerFormat>, inspection: &Inspection) -> bool {
    match imported(bytes, ranged, declared) {
        Ok(imported) => {
            assert_eq!(inspection.verdict, Verdict::Accepted, "imported, but {:?}", inspection.reasons);
            assert_eq!(inspection.virtual_size, Some(imported.virtual_size));
            assert_eq!(inspection.disk_format, Some(imported.disk_format));
            assert_eq!(inspection.container_format, imported.container_format);
            assert_eq!(inspection.properties, imported.properties);
            let stored = imported.published[0].result.as_ref().unwrap().image.length;
            assert_eq!(stored, imported.virtual_size, "raw has the disk's length");
            true
        }
        Err(error) => {
            assert!(matches!(error.kind(), Kind::Refused | Kind::NoSpace), "{:?}: {error}", error.kind());
            false
        }
    }
}

/// The target `tar`: headers, extended ones, names.
pub fn tar(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    mend::tar(&mut bytes);
    let length = bytes.len() as u64;
    let file = Sparse::new(&bytes);
    let walk = |streamed| {
        let (mut input, mut scan, mut members) =
            (Input::new(file.clone(), streamed, 1 << 20), Scan::default(), Vec::new());
        loop {
            match next_member(&mut scan, &mut input) {
                Ok(Some(member)) => members.push(member),
                Ok(None) => return Ok(members),
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Refused, "{error}");
                    return Err(members);
                }
            }
            assert!(members.len() <= data.len() / 512, "more members than headers");
            let member = members.last().unwrap();
            let name = &member.name;
            assert!(!name.starts_with('/') && name.split('/').all(|part| part != ".."), "{name}");
            let end = member.offset.checked_add(member.size).unwrap();
            assert!(input.length().is_none() || end <= length, "{member:?} in {length} bytes");
        }
    };
    match (walk(false), walk(true)) {
        (Ok(members), Ok(others)) => {
            assert_eq!(members, others);
            true
        }
        _ => false,
    }
}

/// The target `ovf`: descriptor, manifest and certificate, with a byte that no text has between them. A `*` at the end of a line of the
/// manifest stands for the right SHA-256: no fuzzer guesses it.
pub fn ovf(data: &[u8]) -> bool {
    let mut texts = data.split(|byte| *byte == 0xff);
    let descriptor = texts.next().unwrap_or_default();
    let disk = base::disk();
    let mut members = vec![("vm.ovf", Bytes::copy_from_slice(descriptor))];
    if let Some(manifest) = texts.next() {
        let known = [members[0].clone(), ("disk.raw", disk.clone())];
        members.push(("vm.mf", with_digests(manifest, &known)));
    }
    if let Some(certificate) = texts.next() {
        members.push(("vm.cert", Bytes::copy_from_slice(certificate)));
    }
    members.push(("disk.raw", disk));
    let archive = archive(&members);
    let by_range = inspected(&archive, true, None).unwrap();
    if by_range.verdict == Verdict::Refused {
        return false;
    }
    if let Some(inspection) = inspected(&archive, false, None) {
        assert_eq!(inspection.verdict, by_range.verdict, "{:?}", inspection.reasons);
    }
    check_import(&archive, true, None, &by_range)
}

fn with_digests(manifest: &[u8], known: &[(&str, Bytes)]) -> Bytes {
    let mut text = Vec::new();
    for line in manifest.split_inclusive(|byte| *byte == b'\n') {
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        let meant = known.iter().find(|(name, _)| body.windows(name.len()).any(|part| part == name.as_bytes()));
        match (body.strip_suffix(b"*"), meant) {
            (Some(start), Some((_, bytes))) => {
                let mut digests = DigestSet::new([DigestAlgorithm::Sha256]);
                digests.update(bytes);
                let digest = digests.finish().digests[0].to_string();
                text.extend_from_slice(start);
                text.extend_from_slice(digest.trim_start_matches("sha256:").as_bytes());
                text.extend_from_slice(&line[body.len()..]);
            }
            _ => text.extend_from_slice(line),
        }
    }
    text.into()
}

/// A tar archive with these members.
pub(crate) fn archive(members: &[(&str, Bytes)]) -> Bytes {
    let entries = members.iter().map(|(name, content)| (b'0', name.as_bytes(), &b""[..], content.as_ref()));
    tar_of(entries)
}

/// A tar archive with entries of this typeflag, name, target and content. Of longer names the beginning.
pub(crate) fn tar_of<'a>(entries: impl Iterator<Item = (u8, &'a [u8], &'a [u8], &'a [u8])>) -> Bytes {
    let mut bytes = Vec::new();
    for (typeflag, name, link, content) in entries {
        let mut header = [0; 512];
        for (at, text) in [(0, name), (157, link)] {
            let length = text.len().min(100);
            header[at..at + length].copy_from_slice(&text[..length]);
        }
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[156] = typeflag;
        header[257..265].copy_from_slice(b"ustar\x0000");
        mend::tar(&mut header);
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes.into()
}

/// The target `ova`: an archive as a whole, inspected by range and as a stream, and imported both ways. Headers are mended.
pub fn ova(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    mend::tar(&mut bytes);
    check(&bytes.into(), None)
}

/// Inspects and imports an archive both ways; whether it was taken.
pub(crate) fn check(archive: &Bytes, declared: Option<ContainerFormat>) -> bool {
    let taken = [true, false].map(|ranged| {
        inspected(archive, ranged, declared)
            .is_some_and(|inspection| check_import(archive, ranged, declared, &inspection))
    });
    taken[0] || taken[1]
}

/// The target `bundle`: the descriptor of a ploop bundle, and the image that it names behind a byte that no text has.
pub fn bundle(data: &[u8]) -> bool {
    let cut = data.iter().position(|byte| *byte == 0xff).unwrap_or(data.len());
    let (descriptor, image) = (Bytes::copy_from_slice(&data[..cut]), data.get(cut + 1..).unwrap_or_default());
    let members = [("a.hdd/DiskDescriptor.xml", descriptor), ("a.hdd/root.hds", Bytes::copy_from_slice(image))];
    check(&archive(&members), None)
}

//! From an input to the map of the disk in it.
//!
//! The only place that knows which formats can be read; knows nothing of their insides.

use bytes::Bytes;

use crate::{
    error::{Error, Kind, Result},
    format::{
        DiskMap, Order, Shape,
        amazon::detect_as,
        ambiguity::check_head,
        detect::{Found, HEAD_LENGTH, Reader, settle},
        ploop::PloopMap,
        qcow2::{Header, Qcow2Map},
        raw::RawMap,
        vdi::VdiMap,
        vhd::VhdMap,
        vhdx::VhdxMap,
        vmdk,
    },
    io::ReadAt,
    model::{DiskFormat, Limits, Violation},
};

/// Finds out what `input` is, checks it against `declared` (`None`: whatever it is) and reads its header.
///
/// # Errors
/// A violation (`Kind::Refused`) if it is no disk, not the declared format, or breaks a rule of its format; else what
/// `input` says.
pub fn open(
    input: &mut dyn ReadAt,
    declared: Option<DiskFormat>,
    limits: &Limits,
    order: Order,
) -> Result<Box<dyn DiskMap>> {
    open_as(input, &Shape::Whole, declared, limits, order)
}

/// The same of an input of which it is known how a disk lies in it.
///
/// # Errors
/// As `open`.
pub fn open_as(
    input: &mut dyn ReadAt,
    shape: &Shape,
    declared: Option<DiskFormat>,
    limits: &Limits,
    order: Order,
) -> Result<Box<dyn DiskMap>> {
    let (head, found) = recognise(input, shape, declared)?;
    let reader = settle(found, declared)?;
    if let Found::Disk(format) = found {
        check_head(&head, format)?;
    }
    judge(reader, input, shape, &head, limits, order)?.map.map_err(|violations| match violations.into_iter().next() {
        Some(violation) => violation.into(),
        None => Error::new(Kind::Internal, "refused for no reason"),
    })
}

/// The first bytes of `input`, where they matter, and what it is.
///
/// # Errors
/// What `input` says.
pub(super) fn recognise(input: &mut dyn ReadAt, shape: &Shape, declared: Option<DiskFormat>) -> Result<(Bytes, Found)> {
    match shape {
        Shape::Extents(_) => Ok((Bytes::new(), Found::Disk(DiskFormat::Vmdk))),
        Shape::Opaque => Ok((Bytes::new(), Found::Disk(DiskFormat::Raw))),
        Shape::Whole => {
            let head = input.read_up_to(0, HEAD_LENGTH)?;
            let found = detect_as(&head, declared);
            Ok((head, found))
        }
    }
}

/// What a header says.
pub(super) struct Judged {
    /// Size of the guest's disk in bytes, if the header could be read so far.
    pub virtual_size: Option<u64>,
    /// The disk, or every reason why it is refused.
    pub map: Result<Box<dyn DiskMap>, Vec<Violation>>,
}

impl Judged {
    /// What opening a map has led to.
    ///
    /// # Errors
    /// Those that are no violations.
    fn of(opened: Result<impl DiskMap + 'static>) -> Result<Self> {
        match opened {
            Ok(map) => Ok(Self { virtual_size: map.virtual_size(), map: Ok(Box::new(map)) }),
            Err(error) => match error.violation() {
                Some(violation) => Ok(Self { virtual_size: None, map: Err(vec![violation.clone()]) }),
                None => Err(error),
            },
        }
    }
}

/// Reads the header of what `reader` reads. `head` is the file's first bytes.
///
/// # Errors
/// What `input` says, never a violation.
pub(super) fn judge(
    reader: Reader,
    input: &mut dyn ReadAt,
    shape: &Shape,
    head: &[u8],
    limits: &Limits,
    order: Order,
) -> Result<Judged> {
    if let Shape::Extents(extents) = shape {
        return Judged::of(vmdk::ExtentMap::new(extents, limits));
    }
    match reader {
        Reader::Vhdx => Judged::of(VhdxMap::open(input, limits)),
        Reader::Ploop => Judged::of(PloopMap::open(head, input.length(), limits)),
        Reader::Flat(format, declared) => Judged::of(RawMap::open(input, format, declared, limits)),
        Reader::Vhd => Judged::of(VhdMap::open(input, head, limits)),
        Reader::Vdi => Judged::of(VdiMap::open(input, head, limits)),
        Reader::Qcow2 => match Header::parse(head, input.length(), limits) {
            Err(violations) => Ok(Judged { virtual_size: None, map: Err(violations) }),
            Ok(header) => {
                let virtual_size = Some(header.virtual_size());
                let judged = Judged::of(Qcow2Map::with_header(input, header, limits))?;
                Ok(Judged { virtual_size, ..judged })
            }
        },
        Reader::Vmdk => match vmdk::Header::parse(head, input.length(), limits) {
            Err(violations) => Ok(Judged { virtual_size: None, map: Err(violations) }),
            Ok(header) => {
                let virtual_size = Some(header.virtual_size());
                let judged = if header.has_tables_at_end() && order == Order::Stream {
                    Judged::of(vmdk::MarkerMap::open(input, header, limits))?
                } else {
                    Judged::of(vmdk::by_tables(input, header, limits))?
                };
                Ok(Judged { virtual_size, ..judged })
            }
        },
    }
}

//! One pass from a source to stores: the only module that knows every stage.
//!
//! ```text
//! source ─► digest ─► unpack ─► window ─► cut ─► work ×cores ─► deliver ─► sinks
//!           (pump)    (pump)             guest order   parallel    guest order again
//! ```
//!
//! `cut` walks the guest's disk in order and collects what each chunk is made of; `work` unpacks, looks for zeros, hashes
//! and encodes chunks on all cores; `deliver` gives them their place in the output, in order. Every queue is bounded, so
//! memory does not grow with the image.

mod container;
mod convert;
mod copy;
mod cut;
mod deliver;
mod expansion;
mod import;
mod inspect;
mod intake;
mod progress;
mod publish;
mod resume;
mod sparse;
mod stored;
mod transfer;
mod verify;
mod work;

pub use convert::{ConvertJob, convert, is_plain};
pub use copy::{Copied, Copy, Fault, copy};
pub use cut::{Direct, Input};
pub use deliver::NamedSink;
pub use import::{Import, Imported, Permit, Published, Target, import};
pub use inspect::{InspectJob, inspect};
pub use progress::{Progress, Snapshot, Stage};
pub use transfer::{Output, Transfer, Transferred, transfer};
pub use verify::{Verdict, Verification, verify};

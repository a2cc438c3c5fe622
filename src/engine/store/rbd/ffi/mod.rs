//! The bindings of librados and librbd, loaded while the program runs: the one module with `unsafe` in it.
//!
//! | file | what |
//! | --- | --- |
//! | `library` | the functions and structures of the two libraries, and how they are loaded |
//! | `exit` | what must be over before the process ends |
//! | `cluster`, `objects`, `images` | a connection, the RADOS objects of a pool, its RBD images |
//!
//! Everything it offers is safe to call: handles end with their owners and keep alive what they rest on, buffers belong to an operation
//! until its callback has come, and what comes back from C is copied. Errors are the libraries' numbers; what they mean is told
//! elsewhere. Calls block, except those that take a callback.
#![allow(unsafe_code, reason = "C libraries are called here, and nowhere else")]

mod cluster;
mod exit;
mod images;
mod library;
mod objects;

use std::ffi::{CStr, CString, c_char, c_int, c_void};

pub(super) use self::{
    cluster::{Cluster, Pool},
    images::{Child, Image, Making},
    objects::Watch,
};

/// `rados_t`, `rados_ioctx_t`, `rbd_image_t` and others: pointers that only the libraries look behind.
type Handle = *mut c_void;
type Text = *const c_char;

/// An error number of the operating system, positive, as the libraries return it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

/// What a call brought.
pub(super) type Outcome<T> = Result<T, Errno>;

impl Errno {
    pub(super) const PERM: Self = Self(1);
    pub(super) const NOENT: Self = Self(2);
    pub(super) const ACCES: Self = Self(13);
    pub(super) const BUSY: Self = Self(16);
    pub(super) const EXIST: Self = Self(17);
    pub(super) const INVAL: Self = Self(22);
    pub(super) const NOSPC: Self = Self(28);
    pub(super) const ROFS: Self = Self(30);
    pub(super) const RANGE: Self = Self(34);
    pub(super) const NOTEMPTY: Self = Self(39);
    pub(super) const SHUTDOWN: Self = Self(108);
    pub(super) const TIMEDOUT: Self = Self(110);
    pub(super) const DQUOT: Self = Self(122);
    pub(super) const CANCELED: Self = Self(125);
}

fn check(code: c_int) -> Outcome<i32> {
    if code < 0 { Err(Errno(code.saturating_neg())) } else { Ok(code) }
}

/// No name holds a zero byte; one that does cannot exist.
fn text(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// A copy of a C string; empty for none.
fn copied(text: Text) -> String {
    // SAFETY: the libraries return strings that end with a zero byte, or null.
    if text.is_null() { String::new() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned() }
}

/// Asks for a list whose length is not known before: `fetch` fails with `RANGE` and says how much room it takes.
fn listed<T: Copy>(empty: T, fetch: impl Fn(*mut T, &mut usize) -> c_int) -> Outcome<Vec<T>> {
    let mut count = 16;
    loop {
        let mut items = vec![empty; count];
        match check(fetch(items.as_mut_ptr(), &mut count)) {
            Ok(_) => {
                items.truncate(count);
                return Ok(items);
            }
            Err(Errno::RANGE) => count = count.max(items.len()).saturating_add(16),
            Err(errno) => return Err(errno),
        }
    }
}

/// Longest name or id that is read back, in bytes.
const NAME: usize = 256;

/// Ends a handle on a thread of its own: ending waits for the libraries' own threads, and the caller may be one of them.
fn in_background(work: impl FnOnce() + Send + 'static) {
    // If there is no thread to be had, the handle stays open until the process ends.
    let _ = std::thread::Builder::new().name("end of an rbd handle".to_owned()).spawn(work);
}

/// A handle that may be used by any thread.
#[derive(Clone, Copy)]
struct Shared(Handle);
// SAFETY: `rados_t`, `rados_ioctx_t` (once set up) and `rbd_image_t` may be used by several threads at once, as the headers say.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> Handle {
        self.0
    }
}

//! RADOS objects of a pool: their bytes, their maps, and who watches them.

use std::{
    ffi::{c_int, c_void},
    ptr::{null, null_mut},
    sync::Arc,
    time::Duration,
};

use super::{Errno, Handle, Outcome, Pool, Text, check, in_background, text};

/// `LIBRADOS_CMPXATTR_OP_EQ`.
const EQUAL: u8 = 1;
/// Entries of a map that are asked for at once.
const BATCH: u64 = 1000;

impl Pool {
    /// When an object was last changed, in seconds since 1970.
    pub(in super::super) fn changed(&self, object: &str) -> Outcome<u64> {
        let (object, mut size, mut time) = (text(object)?, 0, 0);
        // SAFETY: string and places live during the call.
        check(unsafe { (self.api().rados_stat)(self.handle(), object.as_ptr(), &raw mut size, &raw mut time) })?;
        Ok(u64::try_from(time).unwrap_or_default())
    }

    /// Makes an object, empty; nothing happens if it is there.
    pub(in super::super) fn make(&self, object: &str) -> Outcome<()> {
        self.write_op(object, |_| {})
    }

    pub(in super::super) fn write(&self, object: &str, bytes: &[u8], offset: u64) -> Outcome<()> {
        let object = text(object)?;
        let write = self.api().rados_write;
        // SAFETY: string and buffer live during the call.
        check(unsafe { write(self.handle(), object.as_ptr(), bytes.as_ptr().cast(), bytes.len(), offset) }).map(drop)
    }

    /// Up to `length` bytes; fewer only at the end.
    pub(in super::super) fn read(&self, object: &str, length: usize, offset: u64) -> Outcome<Vec<u8>> {
        let (object, mut buffer) = (text(object)?, vec![0_u8; length]);
        let read = self.api().rados_read;
        // SAFETY: string and buffer live during the call, and the buffer has this length.
        let count = check(unsafe { read(self.handle(), object.as_ptr(), buffer.as_mut_ptr().cast(), length, offset) })?;
        buffer.truncate(usize::try_from(count).unwrap_or_default());
        Ok(buffer)
    }

    pub(in super::super) fn remove_object(&self, object: &str) -> Outcome<()> {
        let object = text(object)?;
        // SAFETY: the string lives during the call.
        check(unsafe { (self.api().rados_remove)(self.handle(), object.as_ptr()) }).map(drop)
    }

    /// Puts `new` in the place of `old` in an object's map, atomically; none is an absent entry. The object is made if need be.
    /// `CANCELED` if something else than `old` is there.
    pub(in super::super) fn swap(
        &self,
        object: &str,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Outcome<()> {
        let api = self.api();
        let (key, old) = (key.as_bytes(), old.unwrap_or_default());
        let mut compared: c_int = 0;
        self.write_op(object, |op| {
            let (keys, lengths) = ([key.as_ptr().cast()], [key.len()]);
            // SAFETY: the operation takes copies of what it is given; `compared` lives until it is done.
            unsafe {
                let compare = api.rados_write_op_omap_cmp2;
                compare(op, keys[0], EQUAL, old.as_ptr().cast(), key.len(), old.len(), &raw mut compared);
                match new {
                    Some(new) => {
                        let (values, sizes) = ([new.as_ptr().cast()], [new.len()]);
                        let set = api.rados_write_op_omap_set2;
                        set(op, keys.as_ptr(), values.as_ptr(), lengths.as_ptr(), sizes.as_ptr(), 1);
                    }
                    None => (api.rados_write_op_omap_rm_keys2)(op, keys.as_ptr(), lengths.as_ptr(), 1),
                }
            }
        })
    }

    /// Makes the object and does what `add` adds, as one atomic operation.
    fn write_op(&self, object: &str, add: impl FnOnce(Handle)) -> Outcome<()> {
        let (api, object) = (self.api(), text(object)?);
        // SAFETY: the operation is used between its making and its release only.
        unsafe {
            let op = (api.rados_create_write_op)();
            (api.rados_write_op_create)(op, 0, null());
            add(op);
            let done = (api.rados_write_op_operate)(op, self.handle(), object.as_ptr(), null_mut(), 0);
            (api.rados_release_write_op)(op);
            check(done).map(drop)
        }
    }

    /// One value of an object's map.
    pub(in super::super) fn value(&self, object: &str, key: &str) -> Outcome<Option<Vec<u8>>> {
        let api = self.api();
        let found = self.read_op(object, |op, entries, code| {
            let (keys, lengths): ([Text; 1], _) = ([key.as_ptr().cast()], [key.len()]);
            let get = api.rados_read_op_omap_get_vals_by_keys2;
            // SAFETY: the operation takes copies of the key; the places live until it is done.
            unsafe { get(op, keys.as_ptr(), 1, lengths.as_ptr(), entries, code) }
        })?;
        Ok(found.into_iter().next().map(|(_, value)| value))
    }

    /// An object's whole map.
    pub(in super::super) fn values(&self, object: &str) -> Outcome<Vec<(String, Vec<u8>)>> {
        let (api, mut all) = (self.api(), Vec::<(String, Vec<u8>)>::new());
        loop {
            let after = text(all.last().map_or("", |(key, _)| key))?;
            let (none, mut more) = (text("")?, 0);
            let batch = self.read_op(object, |op, entries, code| {
                let get = api.rados_read_op_omap_get_vals2;
                // SAFETY: the operation takes copies of the strings; the places live until it is done.
                unsafe { get(op, after.as_ptr(), none.as_ptr(), BATCH, entries, &raw mut more, code) }
            })?;
            all.extend(batch);
            if more == 0 {
                return Ok(all);
            }
        }
    }

    fn read_op(
        &self,
        object: &str,
        add: impl FnOnce(Handle, *mut Handle, *mut c_int),
    ) -> Outcome<Vec<(String, Vec<u8>)>> {
        let (api, object) = (self.api(), text(object)?);
        let (mut entries, mut code) = (null_mut(), 0);
        // SAFETY: the operation is used between its making and its release only, its entries while they are not ended.
        unsafe {
            let op = (api.rados_create_read_op)();
            add(op, &raw mut entries, &raw mut code);
            let done = (api.rados_read_op_operate)(op, self.handle(), object.as_ptr(), 0);
            (api.rados_release_read_op)(op);
            let found = check(done).and_then(|_| check(code)).and_then(|_| self.take_entries(entries));
            if !entries.is_null() {
                (api.rados_omap_get_end)(entries);
            }
            found
        }
    }

    /// Copies what an operation found. `entries` must be what a successful one has left.
    unsafe fn take_entries(&self, entries: Handle) -> Outcome<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        loop {
            let (mut key, mut value, mut key_length, mut length) = (null_mut(), null_mut(), 0, 0);
            let next = self.api().rados_omap_get_next2;
            // SAFETY: the caller's promise; the pointers are good until the entries are ended, and are copied before.
            unsafe {
                check(next(entries, &raw mut key, &raw mut value, &raw mut key_length, &raw mut length))?;
                if key.is_null() {
                    return Ok(all);
                }
                let name = std::slice::from_raw_parts(key.cast::<u8>(), key_length);
                let value = if value.is_null() { &[] } else { std::slice::from_raw_parts(value.cast::<u8>(), length) };
                all.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
            }
        }
    }

    /// Tells whoever watches an object, and waits until all have answered. `TIMEDOUT` if one did not in time.
    pub(in super::super) fn notify(&self, object: &str, patience: Duration) -> Outcome<()> {
        let (object, mut reply, mut length) = (text(object)?, null_mut(), 0);
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let (api, notify) = (self.api(), self.api().rados_notify2);
        // SAFETY: string and places live during the call; the reply is given back once.
        unsafe {
            let code = notify(self.handle(), object.as_ptr(), null(), 0, patience, &raw mut reply, &raw mut length);
            (api.rados_buffer_free)(reply);
            check(code).map(drop)
        }
    }
}

/// What a watch calls with the number of a notification, on a thread of the library's: it must not block.
type Heard = dyn Fn(u64) + Send + Sync;

/// Listens for notifications about an object. Ends with its owner, or with the connection.
pub(in super::super) struct Watch {
    pool: Arc<Pool>,
    object: String,
    cookie: u64,
    /// What the library calls; taken when the watch ends.
    heard: Option<Arc<Box<Heard>>>,
}

impl Watch {
    /// Begins to listen. Each notification must be answered with `Pool::acknowledge`.
    pub(in super::super) fn begin(
        pool: &Arc<Pool>,
        object: &str,
        heard: impl Fn(u64) + Send + Sync + 'static,
    ) -> Outcome<Self> {
        let (name, mut cookie) = (text(object)?, 0);
        let heard: Arc<Box<Heard>> = Arc::new(Box::new(heard));
        let argument = Arc::as_ptr(&heard).cast_mut().cast::<c_void>();
        let watch = pool.api().rados_watch3;
        // SAFETY: the callback's argument lives until the watch has ended and its callbacks are done.
        check(unsafe { watch(pool.handle(), name.as_ptr(), &raw mut cookie, on_notify, on_error, 0, argument) })?;
        Ok(Self { pool: Arc::clone(pool), object: object.to_owned(), cookie, heard: Some(heard) })
    }

    /// Answers a notification, from whatever thread.
    pub(in super::super) fn acknowledge(&self, number: u64) -> Outcome<()> {
        let object = text(&self.object)?;
        let acknowledge = self.pool.api().rados_notify_ack;
        // SAFETY: the string lives during the call.
        check(unsafe { acknowledge(self.pool.handle(), object.as_ptr(), number, self.cookie, null(), 0) }).map(drop)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let (pool, cookie, heard) = (Arc::clone(&self.pool), self.cookie, self.heard.take());
        in_background(move || {
            // SAFETY: the cookie is that of this watch. After the flush nothing calls back any more, so the argument may go.
            let _ = unsafe { (pool.api().rados_unwatch2)(pool.handle(), cookie) };
            pool.flush_watches();
            drop(heard);
        });
    }
}

extern "C" fn on_notify(argument: *mut c_void, number: u64, _: u64, _: u64, _: *mut c_void, _: usize) {
    // SAFETY: the argument is what `begin` gave, which lives as long as callbacks come.
    let heard = unsafe { &*argument.cast::<Box<Heard>>() };
    heard(number);
}

/// The watch is lost when the cluster was away for long. Then nobody can be told to let go: the fence still holds.
extern "C" fn on_error(_: *mut c_void, _: u64, code: c_int) {
    tracing::debug!(errno = %Errno(code.saturating_neg()).0, "the watch on an object being written was lost");
}

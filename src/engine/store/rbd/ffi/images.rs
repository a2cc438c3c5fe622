//! RBD images of a pool.

use std::{
    ffi::{c_char, c_int, c_void},
    ptr::{null, null_mut},
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Handle, NAME, Outcome, Pool, Shared, check, copied, in_background,
    library::{Api, ImageSpec, LinkedImage, Watcher},
    listed, text,
};

/// `RBD_IMAGE_OPTION_FEATURES`, `_ORDER`, `_DATA_POOL` and `_CLONE_FORMAT`.
const FEATURES: c_int = 1;
const ORDER: c_int = 2;
const DATA_POOL: c_int = 10;
const CLONE_FORMAT: c_int = 12;

/// `RBD_FEATURE_EXCLUSIVE_LOCK`.
const EXCLUSIVE_LOCK: u64 = 1 << 2;
/// `RBD_LOCK_MODE_EXCLUSIVE`.
const EXCLUSIVE: c_int = 0;

/// How an image is made.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Making {
    /// Bits of `RBD_FEATURE_*`; none leaves it to the libraries.
    pub(in super::super) features: Option<u64>,
    /// Size of its objects, as a power of two; none leaves it to the libraries.
    pub(in super::super) order: Option<u8>,
    /// The pool for its data, if it is another one.
    pub(in super::super) data_pool: Option<String>,
    /// How a clone names its parent, 1 or 2; none leaves it to the libraries.
    pub(in super::super) clone_format: Option<u64>,
}

/// A clone of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Child {
    pub(in super::super) pool: String,
    pub(in super::super) namespace: String,
    pub(in super::super) name: String,
    pub(in super::super) id: String,
    /// Whether it waits in the trash.
    pub(in super::super) trash: bool,
}

impl Making {
    /// Does `work` with the options as the library takes them.
    fn with<T>(&self, api: &Api, work: impl FnOnce(Handle) -> Outcome<T>) -> Outcome<T> {
        let mut options = null_mut();
        // SAFETY: the options are used between their making and their end only; strings are copied.
        unsafe {
            (api.rbd_image_options_create)(&raw mut options);
            let done = self.fill(api, options).and_then(|()| work(options));
            (api.rbd_image_options_destroy)(options);
            done
        }
    }

    unsafe fn fill(&self, api: &Api, options: Handle) -> Outcome<()> {
        let (order, format) = (self.order.map(u64::from), self.clone_format);
        let numbers = [(FEATURES, self.features), (ORDER, order), (CLONE_FORMAT, format)];
        for (option, value) in numbers.into_iter().filter_map(|(option, value)| Some((option, value?))) {
            // SAFETY: the caller's options live.
            check(unsafe { (api.rbd_image_options_set_uint64)(options, option, value) })?;
        }
        if let Some(pool) = &self.data_pool {
            let pool = text(pool)?;
            // SAFETY: as above, and so does the string.
            check(unsafe { (api.rbd_image_options_set_string)(options, DATA_POOL, pool.as_ptr()) })?;
        }
        Ok(())
    }
}

impl Pool {
    /// Id and name of every image, also of those whose removal began and did not end.
    pub(in super::super) fn images(&self) -> Outcome<Vec<(String, String)>> {
        let api = self.api();
        let empty = ImageSpec { id: null_mut(), name: null_mut() };
        // SAFETY: the list has the length that is given; what is returned is copied, then given back once.
        let found = listed(empty, |items, count| unsafe { (api.rbd_list2)(self.handle(), items, count) })?;
        let names = found.iter().map(|image| (copied(image.id), copied(image.name))).collect();
        let mut found = found;
        // SAFETY: as above.
        unsafe { (api.rbd_image_spec_list_cleanup)(found.as_mut_ptr(), found.len()) };
        Ok(names)
    }

    /// Makes an image of length 0.
    pub(in super::super) fn make_image(&self, name: &str, making: &Making) -> Outcome<()> {
        let name = text(name)?;
        making.with(self.api(), |options| {
            // SAFETY: the string lives during the call.
            check(unsafe { (self.api().rbd_create4)(self.handle(), name.as_ptr(), 0, options) }).map(drop)
        })
    }

    /// Makes `name` in the pool `to` a clone of an image's snapshot.
    pub(in super::super) fn clone_image(
        &self,
        parent: &str,
        snapshot: &str,
        to: &Self,
        name: &str,
        making: &Making,
    ) -> Outcome<()> {
        let (parent, snapshot, name) = (text(parent)?, text(snapshot)?, text(name)?);
        let clone = self.api().rbd_clone3;
        making.with(self.api(), |options| {
            let (from, into) = (self.handle(), to.handle());
            // SAFETY: the strings live during the call.
            check(unsafe { clone(from, parent.as_ptr(), snapshot.as_ptr(), into, name.as_ptr(), options) }).map(drop)
        })
    }

    pub(in super::super) fn rename_image(&self, from: &str, to: &str) -> Outcome<()> {
        let (from, to) = (text(from)?, text(to)?);
        // SAFETY: the strings live during the call.
        check(unsafe { (self.api().rbd_rename)(self.handle(), from.as_ptr(), to.as_ptr()) }).map(drop)
    }

    /// Removes an image that has no snapshots and that nobody uses.
    pub(in super::super) fn remove_image(&self, name: &str) -> Outcome<()> {
        let name = text(name)?;
        // SAFETY: the string lives during the call.
        check(unsafe { (self.api().rbd_remove)(self.handle(), name.as_ptr()) }).map(drop)
    }
}

/// How long an image is left alone before it is closed: a thread of librbd that has woken us may not be done with it yet, and closing
/// frees what it locks next. See decision 0028.
const REST: Duration = Duration::from_millis(100);

/// An open image. It is closed on a thread of its own, unless `close` does it.
pub(in super::super) struct Image {
    pool: Arc<Pool>,
    handle: Option<Shared>,
    /// Whether others see that it is open.
    seen: bool,
}

impl Image {
    /// Opens an image by its id, at a snapshot if one is named. Others see that somebody uses it.
    pub(in super::super) fn open(pool: &Arc<Pool>, id: &str, snapshot: Option<&str>) -> Outcome<Self> {
        let api = pool.api();
        Self::open_with(pool, id, snapshot, true, |pool, id, place, snapshot| {
            // SAFETY: strings and place live during the call.
            unsafe { (api.rbd_open_by_id)(pool, id, place, snapshot) }
        })
    }

    /// The same for looking only; nobody sees it.
    pub(in super::super) fn look(pool: &Arc<Pool>, id: &str, snapshot: Option<&str>) -> Outcome<Self> {
        let api = pool.api();
        Self::open_with(pool, id, snapshot, false, |pool, id, place, snapshot| {
            // SAFETY: as above.
            unsafe { (api.rbd_open_by_id_read_only)(pool, id, place, snapshot) }
        })
    }

    /// The same by its name.
    pub(in super::super) fn look_by_name(pool: &Arc<Pool>, name: &str) -> Outcome<Self> {
        let api = pool.api();
        Self::open_with(pool, name, None, false, |pool, name, place, snapshot| {
            // SAFETY: as above.
            unsafe { (api.rbd_open_read_only)(pool, name, place, snapshot) }
        })
    }

    /// Opens for writing by name.
    pub(in super::super) fn open_by_name(pool: &Arc<Pool>, name: &str) -> Outcome<Self> {
        let api = pool.api();
        Self::open_with(pool, name, None, true, |pool, name, place, snapshot| {
            // SAFETY: as above.
            unsafe { (api.rbd_open)(pool, name, place, snapshot) }
        })
    }

    fn open_with(
        pool: &Arc<Pool>,
        what: &str,
        snapshot: Option<&str>,
        seen: bool,
        open: impl FnOnce(Handle, *const c_char, *mut Handle, *const c_char) -> c_int,
    ) -> Outcome<Self> {
        let (what, snapshot, mut handle) = (text(what)?, snapshot.map(text).transpose()?, null_mut());
        let snapshot = snapshot.as_ref().map_or(null(), |snapshot| snapshot.as_ptr());
        check(open(pool.handle(), what.as_ptr(), &raw mut handle, snapshot))?;
        Ok(Self { pool: Arc::clone(pool), handle: Some(Shared(handle)), seen })
    }

    fn api(&self) -> &'static Api {
        self.pool.api()
    }

    fn handle(&self) -> Handle {
        self.handle.map_or(null_mut(), Shared::get)
    }

    /// Closes it, and waits for that if others see that it is open.
    pub(in super::super) fn close(mut self) -> Outcome<()> {
        if !self.seen {
            return Ok(());
        }
        let Some(handle) = self.handle.take() else { return Ok(()) };
        thread::sleep(REST);
        // SAFETY: the handle was open, and is used no more.
        check(unsafe { (self.api().rbd_close)(handle.get()) }).map(drop)
    }

    pub(in super::super) fn id(&self) -> Outcome<String> {
        let mut id: Vec<c_char> = vec![0; NAME];
        // SAFETY: the buffer has the length that is given.
        check(unsafe { (self.api().rbd_get_id)(self.handle(), id.as_mut_ptr(), id.len()) })?;
        Ok(copied(id.as_ptr()))
    }

    pub(in super::super) fn name(&self) -> Outcome<String> {
        let mut name: Vec<c_char> = vec![0; NAME];
        let mut length = NAME;
        // SAFETY: the buffer has the length that is given.
        check(unsafe { (self.api().rbd_get_name)(self.handle(), name.as_mut_ptr(), &raw mut length) })?;
        Ok(copied(name.as_ptr()))
    }

    pub(in super::super) fn length(&self) -> Outcome<u64> {
        let mut length = 0;
        // SAFETY: the place lives during the call.
        check(unsafe { (self.api().rbd_get_size)(self.handle(), &raw mut length) })?;
        Ok(length)
    }

    /// Length of its objects: with the usual striping, a stripe fills one.
    pub(in super::super) fn object_size(&self) -> Outcome<u64> {
        let mut size = 0;
        // SAFETY: the place lives during the call.
        check(unsafe { (self.api().rbd_get_stripe_unit)(self.handle(), &raw mut size) })?;
        Ok(size)
    }

    /// Whether Ceph lets only one client at a time write to it.
    pub(in super::super) fn has_exclusive_lock(&self) -> Outcome<bool> {
        let mut features = 0;
        // SAFETY: the place lives during the call.
        check(unsafe { (self.api().rbd_get_features)(self.handle(), &raw mut features) })?;
        Ok(features & EXCLUSIVE_LOCK != 0)
    }

    /// Makes this client the one that may write, until the image is closed. A dead one's lock is broken, and that one shut out of the
    /// cluster; a living one gives it up, and does not get it back.
    pub(in super::super) fn lock(&self) -> Outcome<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.api().rbd_lock_acquire)(self.handle(), EXCLUSIVE) }).map(drop)
    }

    /// Gives up the room of a stretch of whole objects, which reads as zeros then.
    pub(in super::super) fn discard(&self, start: u64, length: u64) -> Outcome<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.api().rbd_discard)(self.handle(), start, length) }).map(drop)
    }

    pub(in super::super) fn resize(&self, length: u64) -> Outcome<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.api().rbd_resize)(self.handle(), length) }).map(drop)
    }

    pub(in super::super) fn flush(&self) -> Outcome<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.api().rbd_flush)(self.handle()) }).map(drop)
    }

    /// Copies everything that the image has from its parent.
    pub(in super::super) fn flatten(&self) -> Outcome<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.api().rbd_flatten)(self.handle()) }).map(drop)
    }

    pub(in super::super) fn make_snapshot(&self, name: &str) -> Outcome<()> {
        self.with_snapshot(name, self.api().rbd_snap_create)
    }

    pub(in super::super) fn protect(&self, name: &str) -> Outcome<()> {
        self.with_snapshot(name, self.api().rbd_snap_protect)
    }

    pub(in super::super) fn is_protected(&self, name: &str) -> Outcome<bool> {
        let (name, mut protected) = (text(name)?, 0);
        // SAFETY: the image is open; string and place live during the call.
        check(unsafe { (self.api().rbd_snap_is_protected)(self.handle(), name.as_ptr(), &raw mut protected) })?;
        Ok(protected != 0)
    }

    /// `BUSY` if there are clones, `INVAL` if it is not protected.
    pub(in super::super) fn unprotect(&self, name: &str) -> Outcome<()> {
        self.with_snapshot(name, self.api().rbd_snap_unprotect)
    }

    pub(in super::super) fn remove_snapshot(&self, name: &str) -> Outcome<()> {
        self.with_snapshot(name, self.api().rbd_snap_remove)
    }

    fn with_snapshot(&self, name: &str, call: unsafe extern "C" fn(Handle, *const c_char) -> c_int) -> Outcome<()> {
        let name = text(name)?;
        // SAFETY: the image is open, and the string lives during the call.
        check(unsafe { call(self.handle(), name.as_ptr()) }).map(drop)
    }

    /// How many have the image open so that others see it.
    pub(in super::super) fn users(&self) -> Outcome<usize> {
        let api = self.api();
        let empty = Watcher { address: null_mut(), id: 0, cookie: 0 };
        // SAFETY: the list has the length that is given, and is given back once.
        let mut found = listed(empty, |items, count| unsafe { (api.rbd_watchers_list)(self.handle(), items, count) })?;
        // SAFETY: as above.
        unsafe { (api.rbd_watchers_list_cleanup)(found.as_mut_ptr(), found.len()) };
        Ok(found.len())
    }

    /// The clones of the snapshot at which the image was opened.
    pub(in super::super) fn children(&self) -> Outcome<Vec<Child>> {
        let api = self.api();
        let none = null_mut();
        let empty = LinkedImage { pool_id: 0, pool: none, namespace: none, id: none, name: none, trash: false };
        // SAFETY: the list has the length that is given; what is returned is copied, then given back once.
        let mut found = listed(empty, |items, count| unsafe { (api.rbd_list_children3)(self.handle(), items, count) })?;
        let child = |child: &LinkedImage| Child {
            pool: copied(child.pool),
            namespace: copied(child.namespace),
            name: copied(child.name),
            id: copied(child.id),
            trash: child.trash,
        };
        let children = found.iter().map(child).collect();
        // SAFETY: as above.
        unsafe { (api.rbd_linked_image_spec_list_cleanup)(found.as_mut_ptr(), found.len()) };
        Ok(children)
    }

    /// The stretches with data in `start..end`, ascending. With `whole_objects` only which objects there are is looked at.
    pub(in super::super) fn data(&self, start: u64, end: u64, whole_objects: bool) -> Outcome<Vec<(u64, u64)>> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        let argument = (&raw mut found).cast::<c_void>();
        let (iterate, length) = (self.api().rbd_diff_iterate2, end.saturating_sub(start));
        // SAFETY: the callback's argument lives during the call, which calls back before it returns.
        check(unsafe { iterate(self.handle(), null(), start, length, 1, u8::from(whole_objects), on_data, argument) })?;
        Ok(found)
    }

    /// Begins to write; `done` is called on a thread of the library's and must not block. The bytes belong to the write until then.
    pub(in super::super) fn write(
        self: &Arc<Self>,
        offset: u64,
        bytes: Bytes,
        done: impl FnOnce(Outcome<()>) + Send + 'static,
    ) -> Outcome<()> {
        let (start, length) = (bytes.as_ptr(), bytes.len());
        self.begin(
            move |result, image| {
                drop((bytes, image));
                done(result.map(drop));
            },
            |api, image, completion| {
                // SAFETY: the bytes live in the callback's argument until it is called.
                unsafe { (api.rbd_aio_write)(image, offset, length, start.cast(), completion) }
            },
        )
    }

    /// Begins to read; see `write`.
    pub(in super::super) fn read(
        self: &Arc<Self>,
        offset: u64,
        length: usize,
        done: impl FnOnce(Outcome<Vec<u8>>) + Send + 'static,
    ) -> Outcome<()> {
        let mut buffer = vec![0_u8; length];
        let start = buffer.as_mut_ptr();
        self.begin(
            move |result, image| {
                drop(image);
                done(result.map(|count| {
                    buffer.truncate(count);
                    buffer
                }));
            },
            |api, image, completion| {
                // SAFETY: the buffer lives in the callback's argument, where nothing touches it, until it is called.
                unsafe { (api.rbd_aio_read)(image, offset, length, start.cast(), completion) }
            },
        )
    }

    /// Begins an operation with `start`; when it is done, `done` gets its result and the image, which was kept open for it.
    fn begin(
        self: &Arc<Self>,
        done: impl FnOnce(Outcome<usize>, Arc<Self>) + Send + 'static,
        start: impl FnOnce(&Api, Handle, Handle) -> c_int,
    ) -> Outcome<()> {
        let api = self.api();
        let image = Arc::clone(self);
        let ended: Box<Ended> = Box::new(move |result| done(result, image));
        let argument = Box::into_raw(Box::new((api, ended)));
        let mut completion = null_mut();
        // SAFETY: the argument is taken back once: by the callback, or here if there will be none.
        unsafe {
            let made = (api.rbd_aio_create_completion)(argument.cast(), on_done, &raw mut completion);
            let begun = check(made).and_then(|_| {
                let code = check(start(api, self.handle(), completion));
                code.inspect_err(|_| (api.rbd_aio_release)(completion))
            });
            begun.map(drop).inspect_err(|_| drop(Box::from_raw(argument)))
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let pool = Arc::clone(&self.pool);
            // SAFETY: operations under way keep the image open, so there are none.
            in_background(move || {
                thread::sleep(REST);
                unsafe { (pool.api().rbd_close)(handle.get()) };
            });
        }
    }
}

/// What is called when an operation has ended.
type Ended = dyn FnOnce(Outcome<usize>) + Send;

extern "C" fn on_done(completion: Handle, argument: *mut c_void) {
    // SAFETY: the argument is what `begin` made, and this is called once for each.
    let (api, ended) = *unsafe { Box::from_raw(argument.cast::<(&'static Api, Box<Ended>)>()) };
    // SAFETY: the operation has ended, and its completion is released once.
    let result = unsafe {
        let result = (api.rbd_aio_get_return_value)(completion);
        (api.rbd_aio_release)(completion);
        result
    };
    ended(match usize::try_from(result) {
        Ok(count) => Ok(count),
        Err(_) => check(c_int::try_from(result).unwrap_or(c_int::MIN)).map(|_| 0),
    });
}

extern "C" fn on_data(offset: u64, length: usize, exists: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: the argument is the list that `data` lends during its call.
    let found = unsafe { &mut *argument.cast::<Vec<(u64, u64)>>() };
    let end = offset.saturating_add(length as u64);
    if exists != 0 && length > 0 {
        match found.last_mut() {
            Some(last) if last.1 == offset => last.1 = end,
            _ => found.push((offset, end)),
        }
    }
    0
}

//! The functions and structures of librados and librbd: those of `rados/librados.h` and `rbd/librbd.h` of Ceph 14.2 (Nautilus), the
//! oldest release whose libraries do.

use std::ffi::{c_char, c_int, c_void};

use super::{Handle, Text};

pub(super) type WatchCallback = extern "C" fn(*mut c_void, u64, u64, u64, *mut c_void, usize);
pub(super) type WatchError = extern "C" fn(*mut c_void, u64, c_int);
pub(super) type DiffCallback = extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;
pub(super) type AioCallback = extern "C" fn(Handle, *mut c_void);

/// Declares the functions that are looked up in each library, and what loads them all.
macro_rules! functions {
    ($($file:literal as $library:ident { $($name:ident($($argument:ty),*) $(-> $result:ty)?;)* })*) => {
        pub(super) struct Api { $($(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)* }

        impl Api {
            pub(super) fn load() -> Result<Self, String> {
                // SAFETY: these libraries' initialisers ask nothing of their caller, and the types are those of their headers.
                // They are never unloaded, so the functions stay valid.
                unsafe {
                    $(let $library = libloading::Library::new($file).map_err(|e| e.to_string())?;
                    $(let $name = *$library.get(concat!(stringify!($name), "\0").as_bytes()).map_err(|e| e.to_string())?;)*
                    std::mem::forget($library);)*
                    Ok(Self { $($($name,)*)* })
                }
            }
        }
    };
}

functions! {
    "librados.so.2" as rados {
        rados_create2(*mut Handle, Text, Text, u64) -> c_int;
        rados_conf_read_file(Handle, Text) -> c_int;
        rados_conf_set(Handle, Text, Text) -> c_int;
        rados_connect(Handle) -> c_int;
        rados_shutdown(Handle);
        rados_cluster_fsid(Handle, *mut c_char, usize) -> c_int;
        rados_cluster_stat(Handle, *mut ClusterStat) -> c_int;
        rados_mon_command(Handle, *const Text, usize, Text, usize, *mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize) -> c_int;
        rados_buffer_free(*mut c_char);
        rados_watch_flush(Handle) -> c_int;
        rados_ioctx_create(Handle, Text, *mut Handle) -> c_int;
        rados_ioctx_destroy(Handle);
        rados_ioctx_set_namespace(Handle, Text);
        rados_set_pool_full_try(Handle);
        rados_stat(Handle, Text, *mut u64, *mut i64) -> c_int;
        rados_write(Handle, Text, Text, usize, u64) -> c_int;
        rados_read(Handle, Text, *mut c_char, usize, u64) -> c_int;
        rados_remove(Handle, Text) -> c_int;
        rados_create_write_op() -> Handle;
        rados_release_write_op(Handle);
        rados_write_op_create(Handle, c_int, Text);
        rados_write_op_omap_cmp2(Handle, Text, u8, Text, usize, usize, *mut c_int);
        rados_write_op_omap_set2(Handle, *const Text, *const Text, *const usize, *const usize, usize);
        rados_write_op_omap_rm_keys2(Handle, *const Text, *const usize, usize);
        rados_write_op_operate(Handle, Handle, Text, *mut i64, c_int) -> c_int;
        rados_create_read_op() -> Handle;
        rados_release_read_op(Handle);
        rados_read_op_omap_get_vals2(Handle, Text, Text, u64, *mut Handle, *mut u8, *mut c_int);
        rados_read_op_omap_get_vals_by_keys2(Handle, *const Text, usize, *const usize, *mut Handle, *mut c_int);
        rados_read_op_operate(Handle, Handle, Text, c_int) -> c_int;
        rados_omap_get_next2(Handle, *mut *mut c_char, *mut *mut c_char, *mut usize, *mut usize) -> c_int;
        rados_omap_get_end(Handle);
        rados_watch3(Handle, Text, *mut u64, WatchCallback, WatchError, u32, *mut c_void) -> c_int;
        rados_unwatch2(Handle, u64) -> c_int;
        rados_notify2(Handle, Text, Text, c_int, u64, *mut *mut c_char, *mut usize) -> c_int;
        rados_notify_ack(Handle, Text, u64, u64, Text, c_int) -> c_int;
    }
    "librbd.so.1" as rbd {
        rbd_image_options_create(*mut Handle);
        rbd_image_options_destroy(Handle);
        rbd_image_options_set_uint64(Handle, c_int, u64) -> c_int;
        rbd_image_options_set_string(Handle, c_int, Text) -> c_int;
        rbd_namespace_exists(Handle, Text, *mut bool) -> c_int;
        rbd_list2(Handle, *mut ImageSpec, *mut usize) -> c_int;
        rbd_image_spec_list_cleanup(*mut ImageSpec, usize);
        rbd_create4(Handle, Text, u64, Handle) -> c_int;
        rbd_clone3(Handle, Text, Text, Handle, Text, Handle) -> c_int;
        rbd_remove(Handle, Text) -> c_int;
        rbd_rename(Handle, Text, Text) -> c_int;
        rbd_open(Handle, Text, *mut Handle, Text) -> c_int;
        rbd_open_read_only(Handle, Text, *mut Handle, Text) -> c_int;
        rbd_open_by_id(Handle, Text, *mut Handle, Text) -> c_int;
        rbd_open_by_id_read_only(Handle, Text, *mut Handle, Text) -> c_int;
        rbd_close(Handle) -> c_int;
        rbd_get_id(Handle, *mut c_char, usize) -> c_int;
        rbd_get_name(Handle, *mut c_char, *mut usize) -> c_int;
        rbd_get_size(Handle, *mut u64) -> c_int;
        rbd_get_stripe_unit(Handle, *mut u64) -> c_int;
        rbd_get_features(Handle, *mut u64) -> c_int;
        rbd_lock_acquire(Handle, c_int) -> c_int;
        rbd_discard(Handle, u64, u64) -> c_int;
        rbd_resize(Handle, u64) -> c_int;
        rbd_flush(Handle) -> c_int;
        rbd_flatten(Handle) -> c_int;
        rbd_snap_create(Handle, Text) -> c_int;
        rbd_snap_protect(Handle, Text) -> c_int;
        rbd_snap_unprotect(Handle, Text) -> c_int;
        rbd_snap_is_protected(Handle, Text, *mut c_int) -> c_int;
        rbd_snap_remove(Handle, Text) -> c_int;
        rbd_watchers_list(Handle, *mut Watcher, *mut usize) -> c_int;
        rbd_watchers_list_cleanup(*mut Watcher, usize);
        rbd_list_children3(Handle, *mut LinkedImage, *mut usize) -> c_int;
        rbd_linked_image_spec_list_cleanup(*mut LinkedImage, usize);
        rbd_diff_iterate2(Handle, Text, u64, u64, u8, u8, DiffCallback, *mut c_void) -> c_int;
        rbd_aio_create_completion(*mut c_void, AioCallback, *mut Handle) -> c_int;
        rbd_aio_write(Handle, u64, usize, Text, Handle) -> c_int;
        rbd_aio_read(Handle, u64, usize, *mut c_char, Handle) -> c_int;
        rbd_aio_get_return_value(Handle) -> isize;
        rbd_aio_release(Handle);
    }
}

/// `rados_cluster_stat_t`.
#[repr(C)]
#[derive(Default)]
pub(super) struct ClusterStat {
    pub(super) kb: u64,
    pub(super) kb_used: u64,
    pub(super) kb_avail: u64,
    pub(super) num_objects: u64,
}

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ImageSpec {
    pub(super) id: *mut c_char,
    pub(super) name: *mut c_char,
}

/// `rbd_image_watcher_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Watcher {
    pub(super) address: *mut c_char,
    pub(super) id: i64,
    pub(super) cookie: u64,
}

/// `rbd_linked_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LinkedImage {
    pub(super) pool_id: i64,
    pub(super) pool: *mut c_char,
    pub(super) namespace: *mut c_char,
    pub(super) id: *mut c_char,
    pub(super) name: *mut c_char,
    pub(super) trash: bool,
}

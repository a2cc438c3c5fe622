//! The store's folder: where it is, which one it is, and errors that say so.
//!
//! A mount can vanish under a running agent and leave an empty folder on the node's own disk. So every operation enters the
//! folder anew by its path and compares the identity marker in it; nothing is read, written or published in another one.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{FilesystemOptions, layout, tree};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// The version of the layout, written into the marker. A store with a higher one is refused.
const LAYOUT_VERSION: u32 = 1;
/// Larger than any marker of ours, in bytes.
const MAX_MARKER: u64 = 4096;

/// Which store a folder holds: 32 hex digits, drawn when the folder was first used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreId(String);

impl StoreId {
    /// The id in the form in which it was shown; `None` if it is not 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        hex.then(|| Self(text.to_owned()))
    }

    fn draw() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    version: u32,
    id: StoreId,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Place {
    name: String,
    path: PathBuf,
    id: StoreId,
    owner: Option<String>,
    min_free: u64,
}

impl Place {
    /// Opens the folder, and makes it a store if it is empty and `options` do not name one.
    pub(super) fn open(name: &str, path: &Path, options: &FilesystemOptions) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| Error::io(format!("store {name}: {}", path.display()), e))?;
        let id = options.expected.clone().unwrap_or_else(StoreId::draw);
        let (name, owner) = (name.to_owned(), options.owner.clone());
        let place = Self { name, path, id, owner, min_free: options.min_free };
        if options.expected.is_some() {
            place.enter()?;
            return Ok(place);
        }
        let root = place.open_root()?;
        let id = match place.read_marker(&root)? {
            Some(id) => id,
            None => place.mark(&root)?,
        };
        let place = Self { id, ..place };
        place.enter()?;
        Ok(place)
    }

    /// The store's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Which store it is.
    pub(super) fn id(&self) -> &StoreId {
        &self.id
    }

    /// Whose it must be.
    pub(super) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// Bytes that must stay free.
    pub(super) fn min_free(&self) -> u64 {
        self.min_free
    }

    /// Where `name` lies, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the data of `key` lies.
    pub(super) fn url_of(&self, key: &ObjectKey) -> String {
        let path = self.path.join(key.to_string()).join(layout::DATA);
        url::Url::from_file_path(&path).map_or_else(|()| format!("file://{}", path.display()), String::from)
    }

    /// The folder, after making sure that it is the right one.
    pub(super) fn enter(&self) -> Result<OwnedFd> {
        let root = self.open_root()?;
        match self.read_marker(&root)? {
            Some(id) if id == self.id => Ok(root),
            Some(id) => Err(self.lost(&format!("holds store {id} instead of {}", self.id))),
            None => Err(self.lost(&format!("has lost its marker {} of store {}", layout::MARKER, self.id))),
        }
    }

    /// Makes sure that `root`, entered some time ago, is still what the path leads to.
    pub(super) fn confirm(&self, root: &OwnedFd) -> Result<()> {
        let fresh = self.enter()?;
        let identity = |directory| {
            let stat = rustix::fs::fstat(directory).map_err(|e| self.error("looking at the folder", e))?;
            Ok::<_, Error>((stat.st_dev, stat.st_ino))
        };
        if identity(root)? == identity(&fresh)? {
            return Ok(());
        }
        Err(self.lost("was mounted anew while an image was written to it"))
    }

    /// An error of the operating system while `doing` something in the folder.
    pub(super) fn error(&self, doing: &str, errno: Errno) -> Error {
        let kind = match errno {
            Errno::NOSPC | Errno::DQUOT => Kind::NoSpace,
            Errno::ACCESS | Errno::PERM => Kind::Denied,
            // Larger than a file may be there: only another store helps.
            Errno::FBIG => Kind::InvalidInput,
            Errno::ROFS | Errno::STALE | Errno::TIMEDOUT | Errno::NOTCONN | Errno::HOSTDOWN => Kind::Unavailable,
            _ => Kind::Io,
        };
        Error::with_source(
            kind,
            format!("store {} in {}: {doing}", self.name, self.path.display()),
            io::Error::from(errno),
        )
    }

    fn lost(&self, found: &str) -> Error {
        let message = format!(
            "store {}: {} {found}; is its volume mounted? Nothing was written; mount it and the store comes back by itself",
            self.name,
            self.path.display()
        );
        Error::new(Kind::Unavailable, message)
    }

    fn open_root(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => self.lost("does not exist"),
            Errno::NOTDIR => {
                let message = format!("store {}: {} is not a folder; name a folder", self.name, self.path.display());
                Error::new(Kind::InvalidInput, message)
            }
            errno => self.error("opening the folder", errno),
        })
    }

    fn read_marker(&self, root: &OwnedFd) -> Result<Option<StoreId>> {
        let file = match tree::open_file(root, layout::MARKER) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.error("opening the store's marker", errno)),
        };
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, MAX_MARKER), &mut text)
            .map_err(|e| Error::io(format!("store {}: reading {}", self.name, layout::MARKER), e))?;
        let damaged = |e: serde_json::Error| {
            let message =
                format!("store {}: its marker {} is damaged", self.name, self.path_of(layout::MARKER).display());
            Error::with_source(Kind::Unavailable, message, e)
        };
        let marker: Marker = serde_json::from_str(&text).map_err(damaged)?;
        if marker.version > LAYOUT_VERSION {
            let message = format!(
                "store {}: {} was written by a newer Vitrine (layout {}); use that version, or another folder",
                self.name,
                self.path.display(),
                marker.version
            );
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Some(marker.id))
    }

    /// Makes an empty folder a store. If two do so at once, both end up with the one marker that came first.
    fn mark(&self, root: &OwnedFd) -> Result<StoreId> {
        self.refuse_taken(root)?;
        let failed = |errno| self.error("making the folder a store", errno);
        let text = serde_json::to_vec(&Marker { version: LAYOUT_VERSION, id: self.id.clone() })
            .map_err(|e| Error::with_source(Kind::Internal, "writing a store's marker", e))?;
        put_once(root, layout::MARKER, &text).map_err(failed)?;
        self.read_marker(root)?.ok_or_else(|| self.lost("lost its new marker at once"))
    }

    fn refuse_taken(&self, root: &OwnedFd) -> Result<()> {
        let names = tree::names(root).map_err(|e| self.error("listing the folder", e))?;
        let foreign =
            names.iter().find(|name| !matches!(layout::Entry::of(name), layout::Entry::Own | layout::Entry::Scratch));
        let Some(found) = foreign else { return Ok(()) };
        let message = format!(
            "store {}: {} is no Vitrine store and not empty (it holds `{found}`); name an empty folder",
            self.name,
            self.path.display()
        );
        Err(Error::new(Kind::InvalidInput, message))
    }
}

/// Makes the file `name`, durably, unless there is one: then that one stays.
pub(super) fn put_once(root: &OwnedFd, name: &str, text: &[u8]) -> std::result::Result<(), Errno> {
    // By a file without a name, so that nothing is left behind by whoever is killed halfway. Not every file system has them.
    let unnamed = tree::create_unnamed(root).and_then(|file| write_synced(file, text)).and_then(|file| {
        let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(rustix::fs::CWD, opened, root, name, AtFlags::SYMLINK_FOLLOW)
    });
    match unnamed {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(_) => put_by_scratch(root, name, text)?,
    }
    rustix::fs::fsync(root)
}

/// The same with a file of another name, which is removed then.
fn put_by_scratch(root: &OwnedFd, name: &str, text: &[u8]) -> std::result::Result<(), Errno> {
    let scratch = layout::scratch_name(rand::random());
    let written = write_synced(tree::create_file(root, &scratch)?, text);
    // A link, unlike a rename, never replaces what is there.
    let linked = written.and_then(|_| rustix::fs::linkat(root, &scratch, root, name, AtFlags::empty()));
    tree::remove(root, &scratch)?;
    match linked {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Writes all of `bytes` and makes them durable.
fn write_synced(file: OwnedFd, bytes: &[u8]) -> std::result::Result<File, Errno> {
    let mut file = File::from(file);
    io::Write::write_all(&mut file, bytes)
        .and_then(|()| file.sync_all())
        .map(|()| file)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

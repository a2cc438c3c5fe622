//! Directories and files by handle: nothing here follows a symbolic link or resolves a path of more than one part.
//!
//! Knows nothing of objects. Errors are the operating system's own; callers say what they were doing.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};

/// Of directories, before the umask: the agent and its group.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o750);
/// Of files, before the umask: the agent writes, its group reads.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
/// How deep a tree may be that is removed. An object has one level; more is somebody else's work.
const MAX_DEPTH: u32 = 8;

type Result<T> = std::result::Result<T, Errno>;

/// Opens the directory `name` in `parent`.
pub(super) fn open_directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Makes the directory `name`, which must not exist, and opens it.
pub(super) fn make_directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, DIRECTORY_MODE)?;
    open_directory(parent, name)
}

/// Makes a file that must not exist, for reading and writing.
pub(super) fn create_file(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, FILE_MODE)
}

/// Makes a file in `parent` that has no name yet; not every file system can.
pub(super) fn create_unnamed(parent: &OwnedFd) -> Result<OwnedFd> {
    rustix::fs::openat(parent, ".", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, FILE_MODE)
}

/// Opens a file for reading and writing, and makes it if it does not exist.
pub(super) fn open_or_create_file(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, FILE_MODE)
}

/// Opens a file for reading and writing, which must exist.
pub(super) fn open_to_write(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a regular file for reading; anything else is `INVAL`.
pub(super) fn open_file(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    // Without NONBLOCK, opening a pipe that somebody put there would wait for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind == FileType::RegularFile { Ok(file) } else { Err(Errno::INVAL) }
}

/// What `name` is; `None` if it does not exist.
pub(super) fn look_up(parent: &OwnedFd, name: &str) -> Result<Option<rustix::fs::Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `name` still leads to `directory`, which was opened by it.
pub(super) fn is_named(parent: &OwnedFd, name: &str, directory: &OwnedFd) -> bool {
    match (look_up(parent, name), rustix::fs::fstat(directory)) {
        (Ok(Some(now)), Ok(then)) => (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino),
        (Ok(None), _) => false,
        // Cannot be told: the caller's own error says more than a guess.
        (Err(_), _) | (_, Err(_)) => true,
    }
}

/// The names in a directory, without `.` and `..`. A name that is not UTF-8 is given with its odd bytes replaced: such a name
/// is never ours, so it is only shown.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

/// Removes the file or directory `name` with all it contains. What is not there is removed already.
pub(super) fn remove(parent: &OwnedFd, name: &str) -> Result<()> {
    remove_at_depth(parent, name, 0)
}

fn remove_at_depth(parent: &OwnedFd, name: &str, depth: u32) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if depth >= MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let directory = match open_directory(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    for child in names(&directory)? {
        remove_at_depth(&directory, &child, depth.saturating_add(1))?;
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Renames `from` to `to` in `parent`, and fails with `EXIST` if `to` exists.
pub(super) fn rename_to_new(parent: &OwnedFd, from: &str, to: &str) -> Result<()> {
    match rustix::fs::renameat_with(parent, from, parent, to, rustix::fs::RenameFlags::NOREPLACE) {
        // NFS and some FUSE file systems do not know the flag. The caller holds the key's lock, so that looking first is
        // enough among ourselves, and a directory with anything in it is never replaced by a rename.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match look_up(parent, to)? {
            Some(_) => Err(Errno::EXIST),
            None => rustix::fs::renameat(parent, from, parent, to),
        },
        Err(Errno::NOTEMPTY) => Err(Errno::EXIST),
        other => other,
    }
}

/// Seconds since `stat`'s file was last changed; 0 if the clock says it is in the future.
pub(super) fn age_seconds(stat: &rustix::fs::Stat) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_sub(u64::try_from(stat.st_mtime).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_replaced_has_lost_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let parent = OwnedFd::from(std::fs::File::open(folder.path()).unwrap());
        let directory = make_directory(&parent, "a").unwrap();
        assert!(is_named(&parent, "a", &directory));
        rename_to_new(&parent, "a", "b").unwrap();
        assert!(!is_named(&parent, "a", &directory));
        make_directory(&parent, "a").unwrap();
        assert!(!is_named(&parent, "a", &directory));
    }

    #[test]
    fn removing_does_not_follow_links() {
        let folder = tempfile::tempdir().unwrap();
        let parent = OwnedFd::from(std::fs::File::open(folder.path()).unwrap());
        let (outside, inside) = (folder.path().join("outside"), folder.path().join("inside"));
        std::fs::create_dir_all(outside.join("deep")).unwrap();
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        remove(&parent, "inside").unwrap();
        remove(&parent, "inside").unwrap();
        assert!(!inside.exists() && outside.join("deep").exists());
    }
}

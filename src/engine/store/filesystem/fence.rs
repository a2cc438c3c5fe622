//! One writer per key: a lock while something is decided, and a durable note of who may publish.
//!
//! The fence of a key is a file of lines `a<attempt> <nonce>`, and `d<attempt> <nonce>` for a deletion. Lines are only ever added;
//! the last whole one names the sink that may publish, or the deletion after which only a later attempt may. A line torn by a crash is not whole, so the one before it still holds. The same file carries the lock
//! (`flock`, also honoured between clients of one NFS server), which the kernel gives back when a process dies.

use std::{
    io::{Read, Seek, SeekFrom, Write},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, FlockOperation},
    io::Errno,
};

use super::{
    layout::{self, Token},
    partial::overtaken,
    place::Place,
    tree,
};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// How long a lock is waited for. It is held while leftovers are removed, which for a large, scattered file takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often a taken lock is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// How much of a fence's end is read, in bytes: the last line and a torn one have fewer than 64.
const TAIL: u64 = 4096;

/// What came last in the life of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// The sink that may publish.
    Sink(Token),
    /// What this attempt and earlier ones had was deleted.
    Deletion(u32),
}

impl Last {
    /// The highest attempt so far.
    pub(super) fn attempt(self) -> u32 {
        match self {
            Self::Sink(token) => token.attempt,
            Self::Deletion(attempt) => attempt,
        }
    }

    /// Whether a sink with `attempt` may begin.
    pub(super) fn admits(self, attempt: u32) -> bool {
        match self {
            Self::Sink(token) => token.attempt <= attempt,
            Self::Deletion(deleted) => deleted < attempt,
        }
    }
}

/// The locked fence of one key. The lock ends when this is dropped.
pub(super) struct Fence<'a> {
    place: &'a Place,
    key: &'a ObjectKey,
    directory: OwnedFd,
    file: std::fs::File,
}

impl<'a> Fence<'a> {
    /// Waits for the lock of `key`.
    pub(super) fn lock(place: &'a Place, root: &OwnedFd, key: &'a ObjectKey) -> Result<Self> {
        let name = layout::object_name(key);
        let failed = |errno| place.error(&format!("opening the fence of {key}"), errno);
        let directory = match tree::make_directory(root, layout::FENCES) {
            Err(Errno::EXIST) => tree::open_directory(root, layout::FENCES),
            made => made,
        }
        .map_err(failed)?;
        let until = Instant::now().checked_add(PATIENCE);
        loop {
            let file = tree::open_or_create_file(&directory, &name).map_err(failed)?;
            wait_for_lock(place, key, &file, until)?;
            // Between opening and locking, a sweep may have removed the file: then others lock another one.
            if rustix::fs::fstat(&file).map_err(failed)?.st_nlink > 0 {
                return Ok(Self { place, key, directory, file: file.into() });
            }
        }
    }

    /// What came last; `None` if nobody ever began.
    pub(super) fn last(&mut self) -> Result<Option<Last>> {
        let text = self.read_tail().map_err(|e| self.failed("reading", &e))?;
        // What follows the last line end is torn; what precedes the first in a cut-off tail does not parse.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().rev().find_map(parse_line))
    }

    /// Notes durably that only `token` may publish from now on.
    pub(super) fn pass_to(&mut self, token: Token) -> Result<()> {
        let line = format!("a{} {:016x}\n", token.attempt, token.nonce);
        self.append(&line).map_err(|e| self.failed("writing", &e))
    }

    /// Makes sure that a deletion by `attempt` takes nothing from a later one.
    ///
    /// # Errors
    /// `Conflict` if a later one has begun.
    pub(super) fn require_latest(&mut self, attempt: u32) -> Result<()> {
        match self.last()?.filter(|last| last.attempt() > attempt) {
            Some(last) => Err(overtaken(self.place, self.key, attempt, last.attempt())),
            None => Ok(()),
        }
    }

    /// Notes durably that nothing of `attempt` and earlier ones may be published any more.
    pub(super) fn close(&mut self, attempt: u32) -> Result<()> {
        let never_begun = self.last()?.is_none();
        let line = format!("d{attempt} {:016x}\n", rand::random::<u64>());
        match self.append(&line).map_err(|e| self.failed("writing", &e)) {
            // There is no sink to shut out, and a full volume must not keep anybody from giving up what is not on it.
            Err(error) if never_begun && error.kind() == Kind::NoSpace => Ok(()),
            written => written,
        }
    }

    /// Length of the fence's file in bytes: it grows with everything that happens to the key.
    pub(super) fn length(&self) -> Result<i64> {
        let stat = rustix::fs::fstat(&self.file);
        stat.map(|stat| stat.st_size)
            .map_err(|errno| self.place.error(&format!("looking at the fence of {}", self.key), errno))
    }

    /// Removes the fence, for a key of which nothing is left.
    pub(super) fn remove(self) -> Result<()> {
        let name = layout::object_name(self.key);
        rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
            .map_err(|errno| self.place.error(&format!("removing the fence of {}", self.key), errno))
    }

    fn read_tail(&mut self) -> std::io::Result<String> {
        let length = self.file.metadata()?.len();
        self.file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut self.file).take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn append(&mut self, line: &str) -> std::io::Result<()> {
        let end = self.file.seek(SeekFrom::End(0))?;
        // A torn line is closed first, so that it cannot swallow this one.
        let text = if end > 0 && !self.read_tail()?.ends_with('\n') { format!("\n{line}") } else { line.to_owned() };
        self.file.seek(SeekFrom::End(0))?;
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        if end == 0 {
            rustix::fs::fsync(&self.directory)?;
        }
        Ok(())
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> Error {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        self.place.error(&format!("{doing} the fence of {}", self.key), errno)
    }
}

fn wait_for_lock(place: &Place, key: &ObjectKey, file: &OwnedFd, until: Option<Instant>) -> Result<()> {
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(errno) => return Err(place.error(&format!("locking {key}"), errno)),
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            let message = format!(
                "store {}: {key} has been locked by another process for {} s; it will be tried again",
                place.name(),
                PATIENCE.as_secs()
            );
            return Err(Error::new(Kind::Unavailable, message));
        }
        std::thread::sleep(PAUSE);
    }
}

fn parse_line(line: &str) -> Option<Last> {
    let (kind, rest) = line.split_at_checked(1)?;
    let (attempt, nonce) = rest.split_once(' ').filter(|(_, nonce)| nonce.len() == 16)?;
    let (attempt, nonce) = (attempt.parse().ok()?, u64::from_str_radix(nonce, 16).ok()?);
    match kind {
        "a" => Some(Last::Sink(Token { attempt, nonce })),
        "d" => Some(Last::Deletion(attempt)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::FilesystemOptions, *};

    #[test]
    fn a_torn_line_neither_counts_nor_swallows_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::open("s", folder.path(), &FilesystemOptions::default()).unwrap();
        let (root, key) = (place.enter().unwrap(), ObjectKey::new("k", 1).unwrap());
        let first = Token { attempt: 1, nonce: 7 };
        Fence::lock(&place, &root, &key).unwrap().pass_to(first).unwrap();
        let path = folder.path().join(layout::FENCES).join("k-r1");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"a2 00000").unwrap();
        let mut fence = Fence::lock(&place, &root, &key).unwrap();
        assert_eq!(fence.last().unwrap(), Some(Last::Sink(first)));
        let third = Token { attempt: 3, nonce: u64::MAX };
        fence.pass_to(third).unwrap();
        assert_eq!(fence.last().unwrap(), Some(Last::Sink(third)));
    }

    #[test]
    fn a_lock_is_never_held_on_a_removed_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::open("s", folder.path(), &FilesystemOptions::default()).unwrap();
        let (root, key) = (place.enter().unwrap(), ObjectKey::new("k", 1).unwrap());
        let first = Fence::lock(&place, &root, &key).unwrap();
        std::thread::scope(|scope| {
            let second =
                scope.spawn(|| Fence::lock(&place, &root, &key).unwrap().pass_to(Token { attempt: 1, nonce: 1 }));
            // Long enough that the second has opened the file and waits for it.
            std::thread::sleep(PAUSE * 10);
            first.remove().unwrap();
            second.join().unwrap().unwrap();
        });
        assert!(Fence::lock(&place, &root, &key).unwrap().last().unwrap().is_some());
    }

    #[test]
    fn many_attempts_do_not_hide_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::open("s", folder.path(), &FilesystemOptions::default()).unwrap();
        let (root, key) = (place.enter().unwrap(), ObjectKey::new("k", 1).unwrap());
        let lines: Vec<_> = (0..1000).map(|attempt| format!("a{attempt} {attempt:016x}\n")).collect();
        drop(Fence::lock(&place, &root, &key).unwrap());
        std::fs::write(folder.path().join(layout::FENCES).join("k-r1"), lines.concat()).unwrap();
        let last = Fence::lock(&place, &root, &key).unwrap().last().unwrap();
        assert_eq!(last, Some(Last::Sink(Token { attempt: 999, nonce: 999 })));
    }
}

//! A file that is being downloaded: beside its own name until it is whole, with what it is a part of, so that a later run goes on with it.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use vitrine_engine::{
    error::{Error, Kind, Result},
    model::DigestAlgorithm,
    verify::DigestSet,
};

/// What follows the name of a file that is not whole.
const PART: &str = ".part";
/// And that of the note what it is a part of.
const NOTE: &str = ".part.etag";
/// How much is read at once, and how long a run of zeros must be to be left out.
const PIECE: usize = 256 << 10;

/// A part of a file.
pub struct Part {
    target: PathBuf,
    beside: PathBuf,
    note: PathBuf,
    file: File,
    written: u64,
    digests: DigestSet,
}

impl Part {
    /// What there is of `target` of the version `etag`; what there is of another version is thrown away. Reads what is there, for its digest.
    ///
    /// # Errors
    /// If a file of that name is there already and `force` is not said, or nothing can be written beside it.
    pub fn open(target: &Path, etag: &str, force: bool) -> Result<Self> {
        check(target, force)?;
        let with = |end: &str| {
            let mut name = OsString::from(target.as_os_str());
            name.push(end);
            PathBuf::from(name)
        };
        let (beside, note) = (with(PART), with(NOTE));
        let fault = |e| Error::io(format!("opening {}", beside.display()), e);
        let same = std::fs::read_to_string(&note).is_ok_and(|noted| noted == etag);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(!same).open(&beside).map_err(fault)?;
        if !same {
            std::fs::write(&note, etag).map_err(|e| Error::io(format!("writing {}", note.display()), e))?;
        }
        let digests = DigestSet::new([DigestAlgorithm::Sha256]);
        let mut part = Self { target: target.to_owned(), beside, note, file, written: 0, digests };
        part.take_in().map_err(|e| part.fault(e))?;
        Ok(part)
    }

    /// How much of it there is.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Where it is until it is whole.
    pub fn path(&self) -> &Path {
        &self.beside
    }

    /// Digests what is there.
    fn take_in(&mut self) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            match self.file.read(&mut piece)? {
                0 => return Ok(()),
                read => {
                    self.digests.update(piece.get(..read).unwrap_or_default());
                    self.written = self.written.saturating_add(read as u64);
                }
            }
        }
    }

    /// Forgets what there is.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn begin_anew(&mut self, etag: &str) -> Result<()> {
        let anew = || {
            self.file.set_len(0)?;
            std::fs::write(&self.note, etag)
        };
        anew().map_err(|e| self.fault(e))?;
        (self.written, self.digests) = (0, DigestSet::new([DigestAlgorithm::Sha256]));
        Ok(())
    }

    /// Adds what follows. Runs of zeros become holes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digests.update(bytes);
        for piece in bytes.chunks(PIECE) {
            if piece.iter().any(|byte| *byte != 0) {
                let at = self.file.seek(SeekFrom::Start(self.written)).and_then(|_| self.file.write_all(piece));
                at.map_err(|e| self.fault(e))?;
            }
            self.written = self.written.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Makes it as long as what was received, so that a later run knows how much that was.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn settle(&self) -> Result<()> {
        self.file.set_len(self.written).map_err(|e| self.fault(e))
    }

    /// The digest of all that was received, as `sha256:…`.
    ///
    /// # Errors
    /// None that can happen.
    pub fn digest(&mut self) -> Result<String> {
        let digests = std::mem::replace(&mut self.digests, DigestSet::new([]));
        let found = digests.finish().digests.into_iter().next();
        found.map(|digest| digest.to_string()).ok_or_else(|| Error::new(Kind::Internal, "no digest was taken"))
    }

    /// Gives it its own name, durably.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn finish(self, force: bool) -> Result<()> {
        self.settle()?;
        self.file.sync_all().map_err(|e| self.fault(e))?;
        check(&self.target, force)?;
        let named = std::fs::rename(&self.beside, &self.target).and_then(|()| sync_folder(&self.target));
        named.map_err(|e| Error::io(format!("giving {} its name", self.target.display()), e))?;
        // Without the part it means nothing.
        let _ = std::fs::remove_file(&self.note);
        Ok(())
    }

    /// Throws it away.
    pub fn discard(self) {
        for path in [&self.beside, &self.note] {
            if let Err(error) = std::fs::remove_file(path) {
                eprintln!("{} stays behind: {error}", path.display());
            }
        }
    }

    fn fault(&self, error: io::Error) -> Error {
        Error::io(format!("writing {}", self.beside.display()), error)
    }
}

/// Whether the file may be written.
fn check(target: &Path, force: bool) -> Result<()> {
    let path = target.display();
    match target.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(format!("looking at {path}"), e)),
        Ok(found) if !found.is_file() => Err(Error::new(
            Kind::InvalidInput,
            format!("{path} is no regular file: name another one, or - for standard output"),
        )),
        Ok(_) if !force => {
            Err(Error::new(Kind::AlreadyExists, format!("{path} is there already: --force replaces it")))
        }
        Ok(_) => Ok(()),
    }
}

fn sync_folder(target: &Path) -> io::Result<()> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_gone_on_with_and_one_of_another_version_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk.raw");
        let mut part = Part::open(&target, "\"a\"", false).unwrap();
        part.write(b"hello ").unwrap();
        part.write(&[0; 100]).unwrap();
        part.settle().unwrap();
        drop(part);
        let mut part = Part::open(&target, "\"a\"", false).unwrap();
        assert_eq!(part.written(), 106, "zeros that were left out count");
        part.write(b"world").unwrap();
        let whole = [&b"hello "[..], &[0; 100], b"world"].concat();
        let mut digests = DigestSet::new([DigestAlgorithm::Sha256]);
        digests.update(&whole);
        assert_eq!(part.digest().unwrap(), digests.finish().digests[0].to_string());
        drop(part);
        assert_eq!(Part::open(&target, "\"b\"", false).unwrap().written(), 0);
    }

    #[test]
    fn a_whole_one_has_its_name_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk.raw");
        let write = |bytes: &[u8], force| {
            let mut part = Part::open(&target, "\"a\"", force)?;
            part.write(bytes)?;
            part.finish(force)
        };
        write(b"one", false).unwrap();
        assert_eq!(write(b"two", false).unwrap_err().kind(), Kind::AlreadyExists);
        write(b"three", true).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let mut part = Part::open(&folder.path().join("x"), "\"a\"", false).unwrap();
        part.write(b"x").unwrap();
        part.discard();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

//! Opening a published object while others publish and delete.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::{layout, place::Place, record, tree};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, StoredImage},
};

/// The data and the record of a published object.
pub(super) fn open(place: &Place, key: &ObjectKey) -> Result<(OwnedFd, StoredImage)> {
    with_directory(place, key, |directory| open_files(place, key, directory))
}

/// Does `work` with the object's directory. If it fails because the object was deleted meanwhile, it is done again with what
/// has the name now, if anything.
fn with_directory<T>(place: &Place, key: &ObjectKey, mut work: impl FnMut(&OwnedFd) -> Result<T>) -> Result<T> {
    let name = layout::object_name(key);
    let root = place.enter()?;
    loop {
        let directory = match tree::open_directory(&root, &name) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Err(not_found(place, key)),
            Err(errno) => return Err(place.error(&format!("opening {name}"), errno)),
        };
        match work(&directory) {
            Err(_) if !tree::is_named(&root, &name, &directory) => {}
            done => return done,
        }
    }
}

fn open_files(place: &Place, key: &ObjectKey, directory: &OwnedFd) -> Result<(OwnedFd, StoredImage)> {
    let data = tree::open_file(directory, layout::DATA)
        .map_err(|errno| place.error(&format!("opening the data of {key}"), errno))?;
    let image = record::read(directory).map_err(|error| {
        let path = place.path_of(&key.to_string()).join(layout::RECORD);
        let message = format!(
            "store {}: {key} cannot be used, its record {} is damaged; delete the object",
            place.name(),
            path.display()
        );
        Error::with_source(Kind::Io, message, error)
    })?;
    Ok((data, image))
}

fn not_found(place: &Place, key: &ObjectKey) -> Error {
    let message = format!("store {} holds no {key}; import it, or remove the location", place.name());
    Error::new(Kind::NotFound, message)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::FilesystemOptions, *};

    #[test]
    fn what_was_deleted_in_the_middle_is_not_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::open("s", folder.path(), &FilesystemOptions::default()).unwrap();
        let key = ObjectKey::new("k", 1).unwrap();
        let (object, away) = (folder.path().join("k-r1"), folder.path().join("away"));
        let fail = || Err::<(), _>(Error::new(Kind::Io, "the file is gone"));
        fs::create_dir(&object).unwrap();
        let kind = |result: Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(with_directory(&place, &key, |_| fail())), Kind::Io);

        let mut calls = 0;
        let published_anew = with_directory(&place, &key, |_| {
            calls += 1;
            if calls > 1 {
                return Ok(());
            }
            fs::rename(&object, &away).unwrap();
            fs::create_dir(&object).unwrap();
            fail()
        });
        assert_eq!((published_anew.is_ok(), calls), (true, 2));

        let deleted = with_directory(&place, &key, |_| {
            fs::remove_dir(&object).unwrap();
            fail()
        });
        assert_eq!(kind(deleted), Kind::NotFound);
    }
}

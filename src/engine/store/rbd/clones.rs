//! Clones of published images: making them, naming them, and making them independent.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    ffi::{Child, Errno, Image, Making, Pool},
    layout::{self, SNAPSHOT},
    place::Place,
    published,
};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// Clones that a message names; the rest are counted.
const NAMED: usize = 10;
/// How often clones are listed anew that appear or go meanwhile, and flattened too where that is asked for.
const ROUNDS: usize = 5;

/// Makes the snapshot of a published image free to be removed.
pub(super) fn release(place: &Arc<Place>, key: &ObjectKey, id: &str) -> Result<()> {
    for _ in 0..ROUNDS {
        let children = of(place, id)?;
        if !children.is_empty() {
            if !place.flattens_clones() {
                return Err(in_use(place, key, &children));
            }
            children.iter().try_for_each(|child| flatten(place, child))?;
        }
        if unprotect(place, key, id)? {
            return Ok(());
        }
    }
    Err(in_use(place, key, &of(place, id)?))
}

/// False if a clone was made meanwhile. Once this is done, none can be made.
fn unprotect(place: &Arc<Place>, key: &ObjectKey, id: &str) -> Result<bool> {
    let failed = |errno| place.error(format!("unprotecting snapshot {SNAPSHOT} of image {key}"), errno);
    let image = match Image::open(place.pool(), id, None) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(failed(errno)),
    };
    let free = match image.unprotect(SNAPSHOT) {
        // No such snapshot, or not protected: an earlier deletion came that far.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => true,
        Err(Errno::BUSY) => false,
        Err(errno) => return Err(failed(errno)),
    };
    image.close().map_err(failed)?;
    Ok(free)
}

/// The clones of an image.
pub(super) fn of(place: &Arc<Place>, id: &str) -> Result<Vec<Child>> {
    let failed = |errno| place.error(format!("looking for clones of image {id}"), errno);
    let image = match Image::look(place.pool(), id, Some(SNAPSHOT)) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(failed(errno)),
    };
    let mut children = image.children();
    for _ in 1..ROUNDS {
        // One of them came and went while they were listed, as a clone does that was begun too late.
        if !matches!(children, Err(Errno::NOENT)) {
            break;
        }
        children = image.children();
    }
    let children = children.map_err(failed)?;
    image.close().map_err(failed)?;
    Ok(children)
}

fn flatten(place: &Arc<Place>, child: &Child) -> Result<()> {
    let name = name_of(child);
    let failed = |errno| place.error(format!("flattening the clone {name}"), errno);
    let pool = Arc::new(place.cluster().pool(&child.pool, &child.namespace).map_err(failed)?);
    let image = match Image::open(&pool, &child.id, None) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    let flattened = match image.flatten() {
        // It is none any more.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(failed(errno)),
    };
    image.close().map_err(failed)?;
    flattened
}

/// Makes `name` in `pool` (or `pool/namespace`) a clone; returns its place as a URL.
pub(super) fn make(place: &Arc<Place>, key: &ObjectKey, pool: &str, name: &str) -> Result<String> {
    let doing = format!("cloning image {key} to {pool}/{name}");
    let told = |kind, what: String| {
        Error::new(kind, format!("store {}, pool {}: {doing}: {what}", place.name(), place.spec()))
    };
    if layout::Entry::of(name) != layout::Entry::Foreign {
        return Err(told(Kind::InvalidInput, "names like this one are the store's own; choose another".to_owned()));
    }
    let (_, image) = published::open(place, key, published::Use::Hidden)?;
    let failed = |errno| place.error(&doing, errno);
    let deleting = || told(Kind::NotFound, "the image is being deleted".to_owned());
    // librbd would find that out as well, and close what it had only just opened: see decision 0028.
    if !image.is_protected(SNAPSHOT).map_err(failed)? {
        return Err(deleting());
    }
    image.close().map_err(failed)?;
    let target = open_target(place, pool, &doing)?;
    // Only the second format reaches into another namespace. It is not the usual one while clients may be older than it.
    let namespace = pool.split_once('/').map(|(_, namespace)| namespace);
    let clone_format = (namespace != place.namespace()).then_some(2);
    let making = Making { clone_format, ..Making::default() };
    let cloned = place.pool().clone_image(&layout::object(key), SNAPSHOT, &target, name, &making);
    match cloned {
        Ok(()) => Ok(format!("rbd://{}/{pool}/{name}", place.fsid())),
        // Between the look and the clone it was deleted, or is about to be.
        Err(Errno::INVAL | Errno::NOENT) => Err(deleting()),
        Err(Errno::EXIST) => {
            Err(told(Kind::AlreadyExists, format!("{pool}/{name} exists already; choose another name, or remove it")))
        }
        Err(Errno::PERM | Errno::ACCES) => {
            let pool = pool.split('/').next().unwrap_or(pool);
            let what = format!(
                "Ceph does not let client.{} do this. It needs osd 'profile rbd pool={pool}' to write the clone, and the same of pool                  {} to note it with its parent (`ceph auth caps`)",
                place.user(),
                place.pool_name()
            );
            Err(told(Kind::Denied, what))
        }
        Err(errno) => Err(failed(errno)),
    }
}

/// The pool, or the namespace in one, that a clone goes to.
fn open_target(place: &Arc<Place>, pool: &str, doing: &str) -> Result<Pool> {
    let absent = |what: &str, how: &str| {
        let message = format!(
            "store {}, pool {}: {doing}: the cluster has no {what}: make it with `{how}`, or name another",
            place.name(),
            place.spec()
        );
        Error::new(Kind::NotFound, message)
    };
    let (name, namespace) = pool.split_once('/').unwrap_or((pool, ""));
    let no_pool = || absent(&format!("pool {name}"), &format!("ceph osd pool create {name}"));
    let exists = if namespace.is_empty() { Ok(true) } else { place.cluster().has_namespace(name, namespace) };
    match exists {
        Ok(true) => {}
        Ok(false) => return Err(absent(&format!("namespace {pool}"), &format!("rbd namespace create {pool}"))),
        Err(Errno::NOENT) => return Err(no_pool()),
        Err(errno) => return Err(place.error(doing, errno)),
    }
    place.cluster().pool(name, namespace).map_err(|errno| match errno {
        Errno::NOENT => no_pool(),
        errno => place.error(doing, errno),
    })
}

/// The clones of a published image, as `pool/name`.
pub(super) fn list(place: &Arc<Place>, key: &ObjectKey) -> Result<Vec<String>> {
    let entry = published::find(place, key)?;
    let children = entry.image.map_or_else(|| Ok(Vec::new()), |id| of(place, &id))?;
    Ok(children.iter().map(name_of).collect::<BTreeSet<_>>().into_iter().collect())
}

fn name_of(child: &Child) -> String {
    let Child { pool, namespace, name, trash, .. } = child;
    let place = if namespace.is_empty() { pool.clone() } else { format!("{pool}/{namespace}") };
    if *trash { format!("{place}/{name} (in the trash)") } else { format!("{place}/{name}") }
}

/// The error for an image that has clones.
pub(super) fn in_use(place: &Place, key: &ObjectKey, children: &[Child]) -> Error {
    let names: Vec<_> = children.iter().map(name_of).collect::<BTreeSet<_>>().into_iter().collect();
    let more = names.len().saturating_sub(NAMED);
    let shown = names.get(..NAMED.min(names.len())).unwrap_or_default().join(", ");
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!(
        "store {}, pool {}: image {key} has clones: {shown}{rest}. Remove them, or make them independent with `rbd flatten`; it can \
         be deleted then",
        place.name(),
        place.spec()
    );
    Error::new(Kind::InUse, message)
}

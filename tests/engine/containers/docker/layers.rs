//! What layers come to, held against applying them one after the other with GNU tar.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use vitrine_engine::model::{ContainerFormat, DiskFormat, Verdict};

use super::{
    super::package::{WAYS, imported, inspected},
    extract,
    image::{Form, Image, Layer},
};
use crate::support::{disk, stored};

/// A name: kind and mode, owner, content or target, and the first name of the same file.
type Known = BTreeMap<PathBuf, (u32, (u32, u32), Vec<u8>, PathBuf, i64)>;

fn walk(root: &Path, folder: &Path, names: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.strip_prefix(root).unwrap().to_owned());
        if path.symlink_metadata().unwrap().is_dir() {
            walk(root, &path, names);
        }
    }
}

/// Everything in a folder. Times of folders change when something in them does, and are left out.
fn known(root: &Path) -> Known {
    let mut names = Vec::new();
    walk(root, root, &mut names);
    names.sort();
    let mut first = BTreeMap::new();
    let mut all = Known::new();
    for name in names {
        let path = root.join(&name);
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if metadata.is_file() {
            fs::read(&path).unwrap()
        } else {
            metadata.rdev().to_le_bytes().to_vec()
        };
        let same = first.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
        let modified = if metadata.is_dir() { 0 } else { metadata.mtime() };
        all.insert(name, (metadata.mode(), (metadata.uid(), metadata.gid()), content, same, modified));
    }
    all
}

/// Names in an archive; those of folders end with a slash.
fn list(layer: &[u8], file: &Path) -> Vec<String> {
    fs::write(file, layer).unwrap();
    let output = Command::new("tar").args(["--list", "--file"]).arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Applies layers to a folder: whiteouts first, as they are of lower layers only, then all the rest by GNU tar.
fn apply(layers: &[Vec<u8>], root: &Path) {
    fs::create_dir_all(root).unwrap();
    for layer in layers {
        for name in list(layer, &root.with_extension("list")) {
            let (folder, last) =
                name.trim_end_matches('/').rsplit_once('/').unwrap_or(("", name.trim_end_matches('/')));
            let folder = root.join(folder);
            match last.strip_prefix(".wh.") {
                Some(".wh..opq") => {
                    fs::read_dir(folder).into_iter().flatten().for_each(|entry| remove(&entry.unwrap().path()));
                }
                Some(target) => remove(&folder.join(target)),
                // What is no folder takes the place of one.
                None if !name.ends_with('/') && folder.join(last).is_dir() => remove(&folder.join(last)),
                None => {}
            }
        }
        extract(layer, root);
        let mut names = Vec::new();
        walk(root, root, &mut names);
        for name in names.iter().filter(|name| name.file_name().unwrap().to_str().unwrap().starts_with(".wh.")) {
            fs::remove_file(root.join(name)).unwrap();
        }
    }
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

async fn assert_flat(layers: Vec<Layer>) {
    let image = Image::new(layers);
    let folder = tempfile::tempdir().unwrap();
    apply(&image.layers, &folder.path().join("applied"));
    let expected = known(&folder.path().join("applied"));
    let mut all = Vec::new();
    for (number, form) in [Form::Oci, Form::OciGzip, Form::Saved, Form::OciZstd].into_iter().enumerate() {
        let (archive, way) = (image.archive(form), WAYS[number % 3]);
        let (result, store) = imported(&archive, way, |job| job.container_format = Some(ContainerFormat::Docker)).await;
        let done = result.unwrap_or_else(|e| panic!("{form:?} {way:?}: {e}"));
        assert_eq!((done.container_format, done.disk_format), (ContainerFormat::Docker, DiskFormat::Raw));
        all.push(stored(store.as_ref()).await);
        let seen = inspected(&archive, way, |job| job.container_format = Some(ContainerFormat::Docker)).await;
        assert_eq!((seen.verdict, seen.opaque), (Verdict::Accepted, true), "{:?}", seen.reasons);
        assert_eq!((seen.virtual_size, seen.parts.len()), (Some(done.virtual_size), image.layers.len()));
    }
    assert!(all.windows(2).all(|two| two[0] == two[1]), "the same for every form and way");
    let flat = folder.path().join("flat");
    extract(&all[0], &flat);
    let found = known(&flat);
    for (name, expected) in &expected {
        assert_eq!(found.get(name), Some(expected), "{}", name.display());
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
}

fn base() -> Layer {
    let mut layer = Layer::new();
    layer.folder("etc", 0o755).folder("etc/conf.d", 0o750).folder("usr", 0o755).folder("usr/lib", 0o755);
    layer.file("etc/passwd", 0o644, b"root").file("etc/conf.d/a", 0o600, b"a").file("etc/conf.d/b", 0o640, b"b");
    layer.file("usr/lib/big", 0o755, &disk(3 << 20)).file("usr/lib/empty", 0o444, b"");
    layer.symlink("lib", "usr/lib").symlink("etc/absolute", "/usr/lib/big").hardlink("usr/lib/linked", "usr/lib/big");
    layer.file(&format!("usr/{}/deep", "long".repeat(40)), 0o644, b"deep");
    layer.file("etc-default", 0o644, b"sorts before etc/").entry("etc/pipe", b'6', 0o600, "", b"");
    layer
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_is_itself() {
    assert_flat(vec![base()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_remove_what_is_below() {
    let mut second = Layer::new();
    second.file("etc/.wh.passwd", 0, b"").file("usr/lib/.wh.big", 0, b"").file(".wh.etc-default", 0, b"");
    second.folder("etc", 0o700).file("etc/new", 0o644, b"new").file("usr/.wh..wh.plnk", 0, b"");
    let mut third = Layer::new();
    third.file(".wh.lib", 0, b"").file("etc/passwd", 0o600, b"another");
    assert_flat(vec![base(), second, third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_folders_hide_lower_layers_only() {
    for after in [false, true] {
        let mut second = Layer::new();
        second.folder("etc/conf.d", 0o755);
        if !after {
            second.file("etc/conf.d/.wh..wh..opq", 0, b"");
        }
        second.file("etc/conf.d/c", 0o644, b"c").folder("etc/conf.d/sub", 0o755).file("etc/conf.d/sub/d", 0o644, b"d");
        if after {
            second.file("etc/conf.d/.wh..wh..opq", 0, b"");
        }
        assert_flat(vec![base(), second]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_take_each_others_place() {
    let mut second = Layer::new();
    second.file("etc/conf.d", 0o644, b"a file now").folder("lib", 0o755).file("lib/own", 0o644, b"own");
    second.symlink("etc/passwd", "conf.d").folder("etc/pipe", 0o755).file("etc/pipe/x", 0o644, b"x");
    second.file("usr/lib/linked", 0o600, b"no link any more").hardlink("usr/lib/again", "usr/lib/empty");
    assert_flat(vec![base(), second]).await;
}

/// A hard link keeps what it leads to, whatever becomes of the other name.
#[tokio::test(flavor = "multi_thread")]
async fn hard_links_outlive_their_targets() {
    let mut second = Layer::new();
    second.hardlink("etc/third", "usr/lib/big");
    let mut third = Layer::new();
    third.file("usr/lib/.wh.big", 0, b"").file("usr/lib/.wh.linked", 0, b"");
    assert_flat(vec![base(), second, third]).await;
}

/// Folders that no layer has are made, and those that are links lead on inside.
#[tokio::test(flavor = "multi_thread")]
async fn names_lead_through_links() {
    let mut first = Layer::new();
    first.folder("usr", 0o755).folder("usr/lib", 0o755).folder("etc", 0o755);
    first.symlink("lib", "usr/lib").symlink("etc/up", "../../../usr").symlink("root", "/lib");
    let mut second = Layer::new();
    second.file("lib/module", 0o644, b"module").file("etc/up/other", 0o644, b"other").file("root/third", 0o644, b"3");
    second.file("made/for/it", 0o644, b"it");
    let image = Image::new([first, second]);
    let archive = image.archive(Form::Oci);
    let (result, store) = imported(&archive, WAYS[0], |job| job.container_format = Some(ContainerFormat::Docker)).await;
    drop(result.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("flat");
    extract(&stored(store.as_ref()).await, &root);
    for (name, content) in
        [("usr/lib/module", "module"), ("usr/other", "other"), ("usr/lib/third", "3"), ("made/for/it", "it")]
    {
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), content, "{name}");
    }
    assert!(root.join("lib").is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_headers_say_is_kept() {
    let mut layer = Layer::new();
    layer.folder("etc", 0o755).record("SCHILY.xattr.user.note", b"kept").file("etc/a", 0o4755, b"a");
    layer.record("uid", b"4000000").file("etc/owner", 0o644, b"");
    layer.device("etc/null", b'3', 1, 3);
    assert_flat(vec![layer.clone()]).await;
    let archive = Image::new([layer]).archive(Form::Oci);
    let (_, store) = imported(&archive, WAYS[0], |job| job.container_format = Some(ContainerFormat::Docker)).await;
    let flat = stored(store.as_ref()).await;
    assert!(flat.windows(35).any(|text| text == b"31 SCHILY.xattr.user.note=kept\n\0\0\0\0"));
}

/// What `docker export` writes is kept byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_filesystem_is_kept_as_it_is() {
    let mut root = base();
    root.file(".dockerenv", 0o755, b"").folder("dev", 0o755).file("dev/console", 0o755, b"");
    let archive = root.finish();
    for way in WAYS {
        let (result, store) = imported(&archive, way, |job| job.container_format = Some(ContainerFormat::Docker)).await;
        let done = result.unwrap_or_else(|e| panic!("{way:?}: {e}"));
        assert_eq!((done.container_format, done.disk_format), (ContainerFormat::Docker, DiskFormat::Raw));
        assert!(stored(store.as_ref()).await == archive, "{way:?}");
        let seen = inspected(&archive, way, |job| job.container_format = Some(ContainerFormat::Docker)).await;
        assert_eq!((seen.verdict, seen.opaque, &seen.reasons), (Verdict::Accepted, true, &vec![]));
        assert_eq!((seen.size, seen.virtual_size), (Some(archive.len() as u64), Some(archive.len() as u64)));
    }
}

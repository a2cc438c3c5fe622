//! Images that break one rule each.

use std::path::Path;

use serde_json::{Value, json};
use vitrine_engine::model::{ContainerFormat, Rule, Verdict};

use super::{
    super::package::{WAYS, imported, inspected},
    container_disk,
    image::{Files, Form, Image, Layer, described, gzip, index, sha256, zstd},
};
use crate::support::disk;

/// How import and inspection refuse it, whichever way it comes.
async fn refusal(archive: &[u8]) -> (Rule, String, String) {
    refusal_with(archive, &vitrine_engine::model::Limits::default()).await
}

async fn refusal_with(archive: &[u8], limits: &vitrine_engine::model::Limits) -> (Rule, String, String) {
    let mut all = Vec::new();
    for way in WAYS {
        let (result, store) = imported(archive, way, |job| {
            (job.container_format, job.limits) = (Some(ContainerFormat::Docker), limits.clone());
        })
        .await;
        let error = result.unwrap_err();
        let found = error.violation().unwrap_or_else(|| panic!("{way:?}: {error}")).clone();
        assert!(vitrine_engine::store::Store::list(store.as_ref()).await.unwrap().is_empty());
        let seen = inspected(archive, way, |job| {
            (job.container_format, job.limits) = (Some(ContainerFormat::Docker), limits.clone());
        })
        .await;
        assert_eq!(seen.verdict, Verdict::Refused, "{way:?}");
        assert!(seen.reasons.contains(&found), "{way:?}: {found} {:?}", seen.reasons);
        all.push((found.rule, found.field, found.value));
    }
    assert!(all.windows(2).all(|two| two[0] == two[1]), "{all:?}");
    all.pop().unwrap()
}

/// The same of an image of these layers.
async fn layers_refused(layers: impl IntoIterator<Item = Layer>) -> (Rule, String, String) {
    let mut all = vec![Layer::new()];
    all[0].folder("etc", 0o755).file("etc/passwd", 0o644, b"root").symlink("out", "/");
    all.extend(layers);
    refusal(&Image::new(all).archive(Form::Oci)).await
}

fn of(rule: Rule, field: &str, value: &str) -> (Rule, String, String) {
    (rule, field.into(), value.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_may_not_be_there() {
    let layer = |make: fn(&mut Layer) -> &mut Layer| {
        let mut layer = Layer::new();
        make(&mut layer);
        layer
    };
    for (make, expected) in [
        (layer(|l| l.file("../x", 0o644, b"")), of(Rule::InvalidField, "name", "../x")),
        (layer(|l| l.file("a/../../x", 0o644, b"")), of(Rule::InvalidField, "name", "a/../../x")),
        (layer(|l| l.file("/etc/shadow", 0o644, b"")), of(Rule::InvalidField, "name", "/etc/shadow")),
        (layer(|l| l.hardlink("x", "/etc/shadow")), of(Rule::InvalidField, "linkname", "/etc/shadow")),
        (layer(|l| l.hardlink("x", "../etc/shadow")), of(Rule::InvalidField, "linkname", "../etc/shadow")),
        (layer(|l| l.hardlink("x", "none")), of(Rule::InvalidField, "linkname", "none")),
        (layer(|l| l.hardlink("x", "etc")), of(Rule::InvalidField, "linkname", "etc")),
        (layer(|l| l.symlink("x", "")), of(Rule::InvalidField, "linkname", "")),
        (layer(|l| l.device("sda", b'4', 8, 0)), of(Rule::InvalidField, "typeflag", "device 8:0")),
        (layer(|l| l.device("mem", b'3', 1, 1)), of(Rule::InvalidField, "typeflag", "device 1:1")),
        (layer(|l| l.device("x", b'3', 0, 0)), of(Rule::InvalidField, "typeflag", "device 0:0")),
        (layer(|l| l.entry("x", b'S', 0, "", b"")), of(Rule::UnsupportedFormat, "typeflag", "sparse")),
        (layer(|l| l.entry("x", b'Z', 0, "", b"")), of(Rule::InvalidField, "typeflag", "Z")),
        (layer(|l| l.file("x", 0, b"").file("x", 0, b"")), of(Rule::InvalidField, "name", "x")),
        (layer(|l| l.file("x", 0, b"").folder("x", 0)), of(Rule::InvalidField, "name", "x")),
        (layer(|l| l.file("x/y", 0, b"").file("x", 0, b"")), of(Rule::InvalidField, "name", "x")),
        (layer(|l| l.file("etc/passwd/x", 0, b"")), of(Rule::InvalidField, "name", "etc/passwd")),
        (layer(|l| l.file(".wh.", 0, b"")), of(Rule::InvalidField, "name", ".wh.")),
        (layer(|l| l.file(".wh...", 0, b"")), of(Rule::InvalidField, "name", ".wh...")),
        (layer(|l| l.file(".wh.x", 0, b"").file(".wh.x", 0, b"")), of(Rule::InvalidField, "name", ".wh.x")),
        (layer(|l| l.symlink("a", "b").symlink("b", "a").file("a/x", 0, b"")), of(Rule::InvalidField, "name", "a")),
        (
            layer(|l| l.changed("x", b'0', 0, "", b"", |b| b[124..136].fill(b'9'))),
            of(Rule::InvalidField, "size", "999999999999"),
        ),
    ] {
        assert_eq!(layers_refused([make]).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_what_they_are_called() {
    let image = container_disk(&disk(1 << 20));
    let layer = format!("blobs/sha256/{}", sha256(&image.layers[1]));
    let mut files = image.files(Form::Oci);
    files.get(&layer)[5000] ^= 1;
    let found = refusal(&files.archive()).await;
    assert_eq!((found.0, found.1.as_str()), (Rule::ChecksumMismatch, "digest"));
    let mut files = image.files(Form::Oci);
    files.get(&layer).extend([0; 512]);
    assert_eq!(refusal(&files.archive()).await, of(Rule::InvalidField, "size", &image.layers[1].len().to_string()));
    let mut files = image.files(Form::Oci);
    files.0.retain(|(name, _)| *name != layer);
    let digest = format!("sha256:{}", sha256(&image.layers[1]));
    assert_eq!(refusal(&files.archive()).await, of(Rule::ExternalDataFile, "blob", &digest));
    // Without a digest for the layer as it is, there is one for what it unpacks to.
    for form in [Form::Saved, Form::Podman] {
        let mut files = image.files(form);
        let name = files
            .0
            .iter()
            .map(|(name, _)| name.clone())
            .rfind(|name| Path::new(name).extension().is_some_and(|end| end == "tar"))
            .unwrap();
        files.get(&name)[5000] ^= 1;
        let found = refusal(&files.archive()).await;
        assert_eq!((found.0, found.1.as_str()), (Rule::ChecksumMismatch, "diff_ids"));
        let mut files = image.files(form);
        files.0.retain(|(other, _)| *other != name);
        assert_eq!(refusal(&files.archive()).await, of(Rule::ExternalDataFile, "blob", &name));
        let mut files = image.files(form);
        let config = format!("{}.json", sha256(image.config().to_string().as_bytes()));
        files.get(&config).push(b' ');
        let found = refusal(&files.archive()).await;
        assert_eq!((found.0, found.1.as_str()), (Rule::ChecksumMismatch, "digest"));
    }
}

/// An image whose documents are changed, each with digests that fit.
fn changed(
    image: &Image,
    config: impl FnOnce(&mut Value),
    manifest: impl FnOnce(&mut Value),
    index: impl FnOnce(&mut Value),
) -> Vec<u8> {
    let (mut blobs, _) = image.blobs(<[u8]>::to_vec);
    let (old_manifest, old_config) = (blobs.pop().unwrap(), blobs.pop().unwrap());
    let mut document: Value = serde_json::from_slice(&old_config).unwrap();
    config(&mut document);
    let new_config = document.to_string().into_bytes();
    let mut document: Value = serde_json::from_slice(&old_manifest).unwrap();
    document["config"] = described("application/vnd.oci.image.config.v1+json", &new_config);
    manifest(&mut document);
    let new_manifest = document.to_string().into_bytes();
    let kind = document["mediaType"].as_str().unwrap().to_owned();
    let mut document = json!({"schemaVersion": 2, "manifests": [described(&kind, &new_manifest)]});
    index(&mut document);
    blobs.extend([new_config, new_manifest]);
    let mut files = Files::default();
    files.layout(blobs, &document);
    files.archive()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_fit_each_other() {
    let image = container_disk(&disk(1 << 20));
    let none = |_: &mut Value| {};
    let first = &image.layers[0];
    let other = format!("sha256:{}", sha256(b"other"));
    let cases = [
        (
            changed(&image, |c| drop(c["rootfs"]["diff_ids"].as_array_mut().unwrap().pop()), none, none),
            of(Rule::InvalidField, "diff_ids", "1"),
        ),
        (
            changed(&image, |c| c["rootfs"]["diff_ids"][0] = "md5:x".into(), none, none),
            of(Rule::InvalidField, "diff_ids", "md5:x"),
        ),
        (
            changed(&image, |c| c["rootfs"]["diff_ids"][0] = other.clone().into(), none, none),
            of(Rule::ChecksumMismatch, "diff_ids", &format!("sha256:{}", sha256(first))),
        ),
        (changed(&image, none, |m| m["layers"][0]["size"] = 7.into(), none), of(Rule::InvalidField, "size", "7")),
        (
            changed(&image, none, |m| m["layers"][0]["digest"] = "../../etc/passwd".into(), none),
            of(Rule::InvalidField, "digest", "../../etc/passwd"),
        ),
        (
            changed(&image, none, |m| m["layers"][0]["mediaType"] = "x+encrypted".into(), none),
            of(Rule::Encrypted, "mediaType", "x+encrypted"),
        ),
        (
            changed(&image, none, |m| m["layers"] = vec![m["layers"][0].clone(); 300].into(), none),
            of(Rule::SizeLimit, "layers", "300"),
        ),
        (changed(&image, none, |m| m["layers"] = 1.into(), none), of(Rule::InvalidField, "manifest", "line 1, column")),
        (
            changed(&image, none, none, |i| i["manifests"][0]["digest"] = other.clone().into()),
            of(Rule::ExternalDataFile, "blob", &other),
        ),
        (
            changed(&image, none, none, |i| i["manifests"][0]["mediaType"] = "text/html".into()),
            of(Rule::UnsupportedFormat, "mediaType", "text/html"),
        ),
        (changed(&image, none, none, |i| i["manifests"] = json!([])), of(Rule::InvalidField, "platform", "none")),
        (
            changed(&image, none, none, |i| i["manifests"] = vec![i["manifests"][0].clone(); 200].into()),
            of(Rule::SizeLimit, "manifests", "129"),
        ),
        (index(&[&image], 9), of(Rule::SizeLimit, "index depth", "5")),
        (
            index(&[&image.clone().of("linux/arm64"), &image.clone().of("linux/s390x")], 1),
            of(Rule::InvalidField, "platform", "sha256:"),
        ),
    ];
    for (archive, (rule, field, value)) in cases {
        let found = refusal(&archive).await;
        assert_eq!((found.0, found.1.as_str()), (rule, field.as_str()), "{found:?}");
        assert!(found.2.starts_with(&value), "{found:?} {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archive_says_one_thing() {
    let image = container_disk(&disk(1 << 20));
    let mut files = image.files(Form::Both);
    let text = String::from_utf8(files.get("manifest.json").clone()).unwrap();
    let (one, two) = (sha256(&image.layers[0]), sha256(&image.layers[1]));
    *files.get("manifest.json") = text.replacen(&one, &two, 1).into_bytes();
    let config = format!("blobs/sha256/{}", sha256(image.config().to_string().as_bytes()));
    assert_eq!(refusal(&files.archive()).await, of(Rule::InvalidField, "manifest.json", &config));
    // Neither a root filesystem with an image in it, nor an archive that is no image at all.
    let mut root = Layer::new();
    root.folder("etc", 0o755).file("manifest.json", 0o644, b"[]");
    assert_eq!(refusal(&root.finish()).await, of(Rule::InvalidField, "members", "manifest.json"));
    let mut tar = Layer::new();
    tar.file("disk.raw", 0o644, &disk(1 << 20));
    assert_eq!(refusal(&tar.finish()).await, of(Rule::FormatMismatch, "containerFormat", "tar"));
    // Two images, and none of them named.
    let mut files = image.files(Form::Saved);
    let text = String::from_utf8(files.get("manifest.json").clone()).unwrap();
    let one = text.trim_matches(['[', ']']);
    *files.get("manifest.json") = format!("[{one},{one}]").into_bytes();
    assert_eq!(refusal(&files.archive()).await, of(Rule::InvalidField, "platform", "disk:1; disk:1"));
}

/// A layer may be the same as another one of the archive, and nothing else may be a link.
#[tokio::test(flavor = "multi_thread")]
async fn links_lead_to_layers() {
    let (base, ids) = (Layer::new(), ["1", "2", "3"].map(|n| sha256(n.as_bytes())));
    let image = Image::new([base]);
    let config = image.config().to_string();
    for (target, rule, field) in [
        (format!("../{}/layer.tar", ids[1]), Rule::ExternalDataFile, "blob"),
        (format!("../{}/layer.tar", ids[0]), Rule::ExternalDataFile, "blob"),
        (format!("../../{}/layer.tar", ids[1]), Rule::ExternalDataFile, "typeflag"),
        (format!("/{}/layer.tar", ids[1]), Rule::ExternalDataFile, "typeflag"),
        ("../../../etc/shadow".to_owned(), Rule::ExternalDataFile, "typeflag"),
        (format!("../{}/json", ids[2]), Rule::ExternalDataFile, "typeflag"),
    ] {
        let mut files = Files::default();
        let name = format!("{}/layer.tar", ids[0]);
        let manifest = format!(r#"[{{"Config":"{}.json","Layers":["{name}"]}}]"#, sha256(config.as_bytes()));
        files.add(&format!("{}.json", sha256(config.as_bytes())), config.as_bytes());
        files.add("manifest.json", manifest.as_bytes()).link(&name, &target);
        let (found, at, _) = refusal(&files.archive()).await;
        assert_eq!((found, at.as_str()), (rule, field), "{target}");
    }
    let mut files = image.files(Form::Saved);
    let name = files.0.iter().map(|(name, _)| name.clone()).find(|name| name.ends_with("layer.tar")).unwrap();
    files.link(&name, &format!("../{}/layer.tar", ids[1]));
    files.link(&format!("{}/layer.tar", ids[1]), &format!("../{name}"));
    files.link(&format!("{}/layer.tar", ids[1]), &format!("../{name}"));
    assert_eq!(refusal(&files.archive()).await.0, Rule::InvalidField);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_filesystem_is_looked_at() {
    let root = |make: fn(&mut Layer) -> &mut Layer| {
        let mut layer = Layer::new();
        layer.folder("etc", 0o755).file("etc/passwd", 0o644, b"root").symlink("out", "/");
        make(&mut layer);
        layer.finish()
    };
    for (archive, expected) in [
        (root(|l| l.file("../x", 0, b"")), of(Rule::InvalidField, "name", "../x")),
        (root(|l| l.file("out/x", 0, b"")), of(Rule::InvalidField, "name", "out")),
        (root(|l| l.file("etc/passwd", 0, b"")), of(Rule::InvalidField, "name", "etc/passwd")),
        (root(|l| l.hardlink("x", "out/x")), of(Rule::InvalidField, "name", "out")),
        (root(|l| l.hardlink("x", "/etc/passwd")), of(Rule::InvalidField, "linkname", "/etc/passwd")),
        (root(|l| l.device("sda", b'4', 8, 0)), of(Rule::InvalidField, "typeflag", "device 8:0")),
    ] {
        assert_eq!(refusal(&archive).await, expected);
    }
    let whole = root(|l| l);
    assert_eq!(refusal(&whole[..whole.len() - 1024]).await.0, Rule::Truncated);
    assert_eq!(refusal(&[whole.as_slice(), &[1]].concat()).await.1, "end of archive");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_unpack_to_far_too_much() {
    let limits = vitrine_engine::model::Limits { expansion_floor: 1 << 20, max_expansion: 20, ..Default::default() };
    let layer = |name: &str, size: usize| {
        let mut layer = Layer::new();
        layer.folder("etc", 0o755).file(name, 0o644, &b"bomb".repeat(size / 4));
        layer
    };
    // Each by itself may be, and together they are too much; what a later layer hides counts as well.
    let mut last = Layer::new();
    last.file(".wh.a", 0, b"").file(".wh.b", 0, b"").file(".wh.c", 0, b"");
    let bomb = |layers: Vec<Layer>| Image::new(layers).archive(Form::OciZstd);
    let single = bomb(vec![layer("a", 900 << 10), last.clone()]);
    let (result, _) = imported(&single, WAYS[0], |job| {
        (job.container_format, job.limits) = (Some(ContainerFormat::Docker), limits.clone());
    })
    .await;
    drop(result.unwrap());
    let several = bomb(vec![layer("a", 900 << 10), layer("b", 900 << 10), layer("c", 900 << 10), last]);
    let found = refusal_with(&several, &limits).await;
    assert_eq!((found.0, found.1.as_str()), (Rule::Bomb, "expansion"));
    // Damaged, or packed in a way that nobody packs layers.
    let image = container_disk(&disk(1 << 20));
    let twice = changed_blob(&image, |layer| gzip(&gzip(layer)));
    assert_eq!(refusal(&twice).await.1, "diff_ids");
    let xz = changed_blob(&image, |layer| {
        let mut encoder = liblzma_encoder();
        std::io::Write::write_all(&mut encoder, layer).unwrap();
        encoder.finish().unwrap()
    });
    assert_eq!(refusal(&xz).await, of(Rule::UnsupportedFormat, "mediaType", "xz"));
    let cut = changed_blob(&image, |layer| {
        let packed = zstd(layer);
        packed[..packed.len() / 2].to_vec()
    });
    assert_eq!(refusal(&cut).await.0, Rule::CompressedStream);
}

fn liblzma_encoder() -> liblzma::write::XzEncoder<Vec<u8>> {
    liblzma::write::XzEncoder::new(Vec::new(), 1)
}

/// An image whose layers are packed in this way.
fn changed_blob(image: &Image, pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (blobs, descriptor) = image.blobs(pack);
    let mut files = Files::default();
    files.layout(blobs, &json!({"schemaVersion": 2, "manifests": [descriptor]}));
    files.archive()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_hidden_is_none() {
    let mut last = Layer::new();
    last.file("disk/.wh.fedora.qcow2", 0, b"");
    let mut image = container_disk(&disk(1 << 20));
    image.layers.push(last.finish());
    for way in WAYS {
        let (result, _) = imported(&image.archive(Form::Oci), way, |_| {}).await;
        let error = result.unwrap_err();
        let found = error.violation().unwrap();
        assert_eq!((found.rule, found.field.as_str()), (Rule::UnsupportedFormat, "containerFormat"));
    }
    // Nor is one of two.
    let mut second = Layer::new();
    second.file("disk/other.img", 0o644, &disk(1 << 20));
    let mut image = container_disk(&disk(1 << 20));
    image.layers.push(second.finish());
    let seen = inspected(&image.archive(Form::Oci), WAYS[0], |_| {}).await;
    assert_eq!(seen.reasons[0].field, "containerFormat");
    // And what is there is looked at as ever.
    let seen = inspected(&container_disk(b"<html>not found</html>\n").archive(Form::Oci), WAYS[0], |_| {}).await;
    assert_eq!(seen.reasons[0].rule, Rule::NotADisk);
}

/// Random changes to a good image: an answer comes, whatever they hit, and import never takes what inspection of the same bytes
/// refuses.
#[tokio::test(flavor = "multi_thread")]
async fn changed_images_get_an_answer() {
    let image = container_disk(&disk(256 << 10));
    let mut state = 11_u64;
    for (number, form) in [Form::Oci, Form::Saved, Form::OciGzip].into_iter().enumerate() {
        let archive = image.archive(form);
        let headers: Vec<usize> =
            (0..archive.len()).step_by(512).filter(|at| archive[at + 257..].starts_with(b"ustar")).collect();
        for round in 0..60 {
            let mut changed = archive.clone();
            for _ in 0..=round % 3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let random = usize::try_from(state >> 33).unwrap();
                // Headers more often than what they are of.
                let place = if random % 2 == 0 {
                    headers[random % headers.len()] + random % 512
                } else {
                    random % changed.len()
                };
                changed[place] = u8::try_from((state >> 20) & 0xff).unwrap();
            }
            let way = WAYS[(round + number) % 3];
            let (result, _) = imported(&changed, way, |_| {}).await;
            let seen = inspected(&changed, way, |_| {}).await;
            if seen.verdict == Verdict::Refused {
                let error = result.unwrap_err();
                assert!(error.violation().is_some(), "{round}: {error}, {:?}", seen.reasons);
            }
        }
    }
}

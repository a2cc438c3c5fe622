//! Images' bytes over the data API: to whom, of which copy, and what becomes of it when something breaks.

use std::{
    fs::OpenOptions,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::StreamExt as _;
use reqwest::{Method, Response, Version};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use vitrine::api::{Image, ImagePhase};
use vitrine_harness::Route;

use super::{
    door::{ADDRESS, Door, refusal},
    several::make,
    site::{Site, file, phase, staffed},
};
use crate::node::{
    disks::{raw, sha256},
    lab::until,
};

const SIZE: usize = 9 << 20;

fn header<'r>(response: &'r Response, name: &str) -> &'r str {
    response.headers()[name].to_str().unwrap()
}

#[tokio::test]
async fn an_image_is_downloaded_whole_and_in_parts_over_both_versions() {
    let (site, node, _staff) = staffed("download", &ADDRESS).await;
    let disk = raw(1, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    site.image("t", "disk", "/disk", "s").await;
    let image = site.active("t", "disk").await;
    let (door, token) = (Door::of(&site, &node).await, site.token("t", "viewer", &["vitrine-view"]).await);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let client = door.client(version).await;
        let ask = |method| client.request(method, door.url("t", "disk")).bearer_auth(&token);
        let whole = ask(Method::GET).send().await.unwrap();
        assert_eq!((whole.status().as_u16(), whole.version()), (200, version));
        assert_eq!(header(&whole, "content-length"), SIZE.to_string());
        let content = image.status.as_ref().unwrap().content.as_ref().unwrap().content_digest.clone();
        assert_eq!(header(&whole, "vitrine-content-digest"), content);
        let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(&disk)));
        assert_eq!(header(&whole, "repr-digest"), digest);
        assert_eq!(header(&whole, "content-disposition"), "attachment; filename=\"disk.raw\"");
        let tag = header(&whole, "etag").to_owned();
        assert_eq!(sha256(&whole.bytes().await.unwrap()), sha256(&disk));
        let head = ask(Method::HEAD).send().await.unwrap();
        assert_eq!((head.status().as_u16(), header(&head, "etag")), (200, tag.as_str()));
        assert_eq!((header(&head, "accept-ranges"), header(&head, "content-length")), ("bytes", &*SIZE.to_string()));
        assert!(head.bytes().await.unwrap().is_empty());
        for (range, expected) in
            [("bytes=0-0", 0..1), ("bytes=1048575-3145728", 1_048_575..3_145_729), ("bytes=-7", SIZE - 7..SIZE)]
        {
            let part = ask(Method::GET).header("range", range).header("if-range", &tag).send().await.unwrap();
            assert_eq!(part.status(), 206, "{range}");
            let said = format!("bytes {}-{}/{SIZE}", expected.start, expected.end - 1);
            assert_eq!(header(&part, "content-range"), said);
            assert!(part.bytes().await.unwrap() == disk[expected], "{range}");
        }
        let of_another = ask(Method::GET).header("range", "bytes=0-0").header("if-range", "\"another\"");
        assert_eq!(of_another.send().await.unwrap().status(), 200);
        let several = ask(Method::GET).header("range", "bytes=0-0,5-6").send().await.unwrap();
        assert_eq!((several.status().as_u16(), header(&several, "content-length")), (200, &*SIZE.to_string()));
        let beyond = ask(Method::GET).header("range", format!("bytes={SIZE}-")).send().await.unwrap();
        assert_eq!(header(&beyond, "content-range"), format!("bytes */{SIZE}"));
        assert_eq!(refusal(beyond).await.0, 416);
        let known = ask(Method::GET).header("if-none-match", &tag).send().await.unwrap();
        assert_eq!((known.status().as_u16(), header(&known, "etag")), (304, tag.as_str()));
        let changed = ask(Method::GET).header("if-match", "\"another\"").send().await.unwrap();
        assert_eq!(refusal(changed).await.0, 412);
    }
}

#[tokio::test]
async fn who_may_not_learns_nothing_and_who_may_is_told_why_not() {
    let (site, node, _staff) = staffed("rights", &ADDRESS).await;
    site.lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    site.image("t", "disk", "/disk", "s").await;
    site.active("t", "disk").await;
    site.image("t", "absent", "/nowhere", "s").await;
    let door = Door::of(&site, &node).await;
    for token in ["", "nonsense", "eyJhbGciOiJub25lIn0.e30."] {
        let response = door.get("disk", token, &[]).await;
        assert_eq!(header(&response, "www-authenticate"), "Bearer realm=\"kubernetes\"");
        assert_eq!(refusal(response).await.0, 401, "{token}");
    }
    let nobody = site.token("t", "nobody", &[]).await;
    let stranger = site.token("u", "stranger", &["vitrine-view", "vitrine-edit"]).await;
    for token in [&nobody, &stranger] {
        let (there, not_there) = (door.refused("disk", token).await, door.refused("nothing", token).await);
        assert_eq!((there.0, there.1.as_str()), (403, "Forbidden"));
        let message = not_there.2.replace("nothing", "disk");
        assert_eq!((not_there.0, not_there.1, message), there, "nothing tells whether there is such an Image");
    }
    let viewer = site.token("t", "viewer", &["vitrine-view"]).await;
    let uploader = site.token("t", "uploader", &["vitrine-edit"]).await;
    assert_eq!(door.get("disk", &viewer, &[]).await.status(), 200);
    assert_eq!(door.refused("disk", &uploader).await.0, 403, "who may change Images need not read their data");
    let (code, reason, message) = door.refused("nothing", &viewer).await;
    assert_eq!((code, reason.as_str()), (404, "NotFound"), "{message}");
    for odd in ["..", "%2e%2e", "..%2f..%2fimagestores", "A", "a%00"] {
        let (code, ..) = door.refused(odd, &viewer).await;
        assert_eq!(code, 404, "{odd}");
    }
    let (code, reason, message) = door.refused("absent", &viewer).await;
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert!(message.contains("no data yet"), "{message}");
    let posted = door.ask(Method::from_bytes(b"LOCK").unwrap(), "disk", &viewer, &[]).await;
    assert_eq!((header(&posted, "allow").contains("GET"), refusal(posted).await.0), (true, 405));
    site.patch("disk", json!({ "spec": { "deactivated": true } })).await;
    let (code, _, message) = door.refused("disk", &viewer).await;
    assert!(code == 403 && message.contains("spec.deactivated"), "{code} {message}");
    let deactivated = |image: &Image| phase(image) == Some(ImagePhase::Deactivated);
    site.wait_for("t", "disk", "is Deactivated", deactivated).await;
    site.patch("disk", json!({ "spec": { "deactivated": false } })).await;
    assert_eq!(door.get("disk", &viewer, &[]).await.status(), 200);
    let delete = ["delete", "serviceaccount", "viewer", "--namespace", &site.tenant("t")];
    site.lab.plane.kubectl(&delete).await.unwrap().success().unwrap();
    let refused = async || (door.get("disk", &viewer, &[]).await.status() == 401).then_some(());
    until("a token of nobody is refused", refused).await;
}

#[tokio::test]
async fn what_another_node_keeps_is_passed_on() {
    let site = Site::shared("passed").await;
    let (here, there) = (site.lab.node("here").await, site.lab.node("there").await);
    let _operator = site.operator(&[]);
    let _agent = site.lab.start(&here, &[&ADDRESS[..], &["--store-stall-timeout", "5"]].concat());
    let other = site.lab.start(&there, &ADDRESS);
    site.store("s", &there.store(), false, Some(&there)).await;
    let disk = raw(1, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    site.image("t", "disk", "/disk", "s").await;
    let image = site.active("t", "disk").await;
    assert_eq!(image.status.unwrap().locations[0].node.as_deref(), Some(there.name.as_str()));
    let (door, direct) = (Door::of(&site, &here).await, Door::of(&site, &there).await);
    let token = site.token("t", "viewer", &["vitrine-view"]).await;
    let (passed, read) = (door.get("disk", &token, &[]).await, direct.get("disk", &token, &[]).await);
    for name in ["etag", "content-length", "accept-ranges", "repr-digest", "vitrine-content-digest"] {
        assert_eq!(header(&passed, name), header(&read, name));
    }
    assert_eq!(sha256(&passed.bytes().await.unwrap()), sha256(&disk));
    let part = door.get("disk", &token, &[("range", "bytes=5-1999999")]).await;
    assert_eq!(part.status(), 206);
    assert!(part.bytes().await.unwrap() == disk[5..2_000_000]);
    let head = door.ask(Method::HEAD, "disk", &token, &[]).await;
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, &*SIZE.to_string()));
    let nobody = site.token("t", "nobody", &[]).await;
    assert_eq!(door.refused("disk", &nobody).await.0, 403);
    // Asked by another agent, it does not ask around itself.
    let forwarded = [("vitrine-forwarded-by", "somebody")];
    assert_eq!(refusal(door.get("disk", &token, &forwarded).await).await.0, 503);
    drop(other);
    let (code, _, message) = door.refused("disk", &token).await;
    assert!(code == 503 && message.contains(&there.name), "{code} {message}");
}

#[tokio::test]
async fn another_copy_goes_on_where_one_breaks_off() {
    const LARGE: usize = 64 << 20;
    let site = Site::shared("goes-on").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &ADDRESS));
    for short in ["a", "b"] {
        site.store(short, &node.stores.join(short), false, None).await;
    }
    let disk: Vec<u8> = (0..LARGE / 8).flat_map(|number| (number as u64 ^ 0x5bd1_e995).to_le_bytes()).collect();
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["a", "b"], json!({})).await;
    let image = site.active("t", "disk").await;
    let (door, token) = (Door::of(&site, &node).await, site.token("t", "viewer", &["vitrine-view"]).await);
    let mut stream = door.get("disk", &token, &[]).await.bytes_stream();
    let mut received = stream.next().await.unwrap().unwrap().to_vec();
    // What is on its way in buffers is a few MiB; the rest of the first copy is gone.
    let first = image.status.unwrap().locations[0].url.clone().unwrap();
    let first = OpenOptions::new().write(true).open(first.strip_prefix("file://").unwrap()).unwrap();
    first.set_len(1 << 20).unwrap();
    while let Some(piece) = stream.next().await {
        received.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(sha256(&received), sha256(&disk));
    // With no copy left it breaks off, and is not taken for the whole.
    let mut stream = door.get("disk", &token, &[]).await.bytes_stream();
    let begun = stream.next().await.unwrap().unwrap().len();
    for short in ["a", "b"] {
        let folder = node.stores.join(short);
        let key = format!("{}-r1", image.metadata.uid.as_deref().unwrap());
        let data = walk(&folder).into_iter().filter(|path| path.display().to_string().contains(&key));
        for path in data.filter(|path| path.metadata().unwrap().len() > 1 << 20) {
            OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
        }
    }
    let mut total = begun;
    let end = loop {
        match stream.next().await {
            Some(Ok(piece)) => total += piece.len(),
            end => break end,
        }
    };
    assert!(end.is_some_and(|end| end.is_err()) && total < LARGE, "{total}");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn a_compressed_copy_is_sent_as_it_is() {
    let (site, node, _staff) = staffed("as-it-is", &ADDRESS).await;
    site.lab.server.put("/disk", Route::bytes(raw(1, SIZE)));
    make(&site, "disk", &["s"], json!({ "convertTo": { "diskFormat": "qcow2", "compression": "zstd" } })).await;
    let image = site.active("t", "disk").await;
    let stored = std::fs::read(file(&image)).unwrap();
    let (door, token) = (Door::of(&site, &node).await, site.token("t", "viewer", &["vitrine-view"]).await);
    let response = door.get("disk", &token, &[]).await;
    assert_eq!(header(&response, "vitrine-disk-format"), "qcow2");
    assert!(!response.headers().contains_key("repr-digest"), "nobody took a digest of those bytes");
    assert!(response.bytes().await.unwrap() == stored);
}

#[tokio::test]
async fn a_tenant_that_does_too_much_at_once_holds_up_no_other() {
    const LARGE: usize = 48 << 20;
    let site = Site::shared("tenants").await;
    let node = site.lab.node("n").await;
    let limits = [&ADDRESS[..], &["--data-requests", "1", "--data-memory", "2"]].concat();
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &limits));
    site.store("s", &node.store(), false, None).await;
    let disk: Vec<u8> = (0..LARGE / 8).flat_map(|number| (number as u64).to_le_bytes()).collect();
    site.lab.server.put("/disk", Route::bytes(disk));
    for tenant in ["t", "u"] {
        site.image(tenant, "disk", "/disk", "s").await;
        site.active(tenant, "disk").await;
    }
    let door = Door::of(&site, &node).await;
    let token = site.token("t", "viewer", &["vitrine-view"]).await;
    let other = site.token("u", "viewer", &["vitrine-view"]).await;
    let begun = door.get("disk", &token, &[]).await;
    assert_eq!(begun.status(), 200);
    let refused = door.get("disk", &token, &[]).await;
    assert!(refused.headers().contains_key("retry-after"));
    let (code, reason, message) = refusal(refused).await;
    assert_eq!((code, reason.as_str()), (429, "TooManyRequests"), "{message}");
    let of_other = door.client(Version::HTTP_2).await.get(door.url("u", "disk")).bearer_auth(&other);
    let of_other = of_other.send().await.unwrap();
    assert_eq!(of_other.bytes().await.unwrap().len(), LARGE);
    drop(begun);
    let free = async || (door.get("disk", &token, &[]).await.status() == 200).then_some(());
    until("there is room when the first is gone", free).await;
}

#[tokio::test]
async fn who_does_nothing_is_let_go() {
    const LARGE: usize = 64 << 20;
    const IDLE: Duration = Duration::from_secs(2);
    let site = Site::shared("idle").await;
    let node = site.lab.node("n").await;
    let limits = [&ADDRESS[..], &["--data-idle-timeout", "2", "--data-requests", "1"]].concat();
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &limits));
    site.store("s", &node.store(), false, None).await;
    let disk: Vec<u8> = (0..LARGE / 8).flat_map(|number| (number as u64).to_le_bytes()).collect();
    site.lab.server.put("/disk", Route::bytes(disk));
    site.image("t", "disk", "/disk", "s").await;
    site.active("t", "disk").await;
    let (door, token) = (Door::of(&site, &node).await, site.token("t", "viewer", &["vitrine-view"]).await);
    // A connection on which nothing is said, and one on which TLS is never begun.
    for begin in [&b""[..], b"\x16"] {
        let mut silent = tokio::net::TcpStream::connect(door.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut silent, begin).await.unwrap();
        let began = Instant::now();
        let mut rest = Vec::new();
        // It may end with a reset as well.
        let _ =
            tokio::time::timeout(Duration::from_secs(60), tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut rest))
                .await
                .expect("it is closed");
        assert!(began.elapsed() >= IDLE / 2, "{:?}", began.elapsed());
    }
    // A download that nobody takes ends, and its place is free again.
    let stuck = door.get("disk", &token, &[]).await;
    assert_eq!(stuck.status(), 200);
    let free = async || (door.get("disk", &token, &[]).await.status() == 200).then_some(());
    until("its place is free again", free).await;
    let mut stream = stuck.bytes_stream();
    let mut total = 0;
    let end = loop {
        match stream.next().await {
            Some(Ok(piece)) => total += piece.len(),
            end => break end,
        }
    };
    assert!(end.is_some_and(|end| end.is_err()) && total < LARGE, "{total}");
}

//! Images whose bytes somebody sends: whole, in steps with cuts in between, by way of another agent, and what is not taken.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use reqwest::{Body, Method, Response, Version};
use serde_json::{Value, json};
use vitrine::api::{Image, ImagePhase};
use vitrine_harness::qemu;

use super::{
    door::{ADDRESS, Door, refusal},
    site::{Site, condition, file, is, phase, staffed},
};
use crate::node::{
    disks::{raw, sha256, sha256_of},
    lab::until,
};

const SIZE: usize = 9 << 20;
const TUS: (&str, &str) = ("tus-resumable", "1.0.0");
const PIECE: (&str, &str) = ("content-type", "application/offset+octet-stream");

/// Makes an Image that waits for its bytes, and waits until it does.
async fn waiting(site: &Site<'_>, name: &str, store: &str, upload: Value) -> Image {
    let manifest = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image",
        "metadata": { "name": name, "namespace": site.tenant("t") },
        "spec": { "source": { "upload": upload }, "stores": [site.store_name(store)] },
    });
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
    until_waiting(site, name).await
}

async fn until_waiting(site: &Site<'_>, name: &str) -> Image {
    let waits = |image: &Image| {
        let says = condition(image, "Ready").is_some_and(|ready| ready.message.contains("waits for its bytes"));
        says && image.status.as_ref().is_some_and(|status| status.upload.is_some())
    };
    site.wait_for("t", name, "waits for its bytes", waits).await
}

/// Sends a request again and again until somebody takes it: an agent takes up a task a moment after the Image says so.
async fn send(
    door: &Door<'_, '_>,
    method: Method,
    name: &str,
    token: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let client = door.client(Version::HTTP_11).await;
    let ask = async || {
        let mut request = client.request(method.clone(), door.url("t", name)).bearer_auth(token).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        (response.status() != 503).then_some(response)
    };
    until(&format!("somebody takes {method} of {name}"), ask).await
}

fn number(response: &Response, name: &str) -> usize {
    response.headers()[name].to_str().unwrap().parse().unwrap()
}

/// How far an upload is.
async fn offset(door: &Door<'_, '_>, name: &str, token: &str) -> usize {
    number(&send(door, Method::HEAD, name, token, &[TUS], b"").await, "upload-offset")
}

#[tokio::test]
async fn what_is_sent_whole_becomes_an_image() {
    let (site, node, _staff) = staffed("sent", &ADDRESS).await;
    let disk = raw(1, SIZE);
    let image = waiting(&site, "disk", "s", json!({ "checksum": sha256(&disk) })).await;
    assert_eq!(phase(&image), Some(ImagePhase::Queued));
    let url = image.status.unwrap().upload.unwrap().url;
    let path = format!("/v1/namespaces/{}/images/disk/data", site.tenant("t"));
    assert_eq!(url, format!("https://vitrine-data.{}.svc{path}", site.lab.namespace));
    let (door, token) = (Door::of(&site, &node).await, site.token("t", "editor", &["vitrine-edit"]).await);
    let sent = send(&door, Method::PUT, "disk", &token, &[], &disk).await;
    assert_eq!(sent.status(), 200, "{}", sent.text().await.unwrap());
    let image = site.active("t", "disk").await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    assert!(image.status.unwrap().upload.is_none(), "nothing is waited for any more");
    let (code, _, message) = refusal(send(&door, Method::PUT, "disk", &token, &[], &disk).await).await;
    assert!(code == 409 && message.contains("has its data already"), "{code} {message}");
    // Over HTTP/2, and without a length.
    waiting(&site, "other", "s", json!({})).await;
    let pieces: Vec<_> = disk.chunks(100_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let client = door.client(Version::HTTP_2).await;
    let ask = async || {
        let body = Body::wrap_stream(stream::iter(
            pieces.iter().map(|piece| Ok::<_, std::io::Error>(piece.as_ref().unwrap().clone())).collect::<Vec<_>>(),
        ));
        let response = client.put(door.url("t", "other")).bearer_auth(&token).body(body).send().await.ok()?;
        (response.status() != 503).then_some(response)
    };
    let sent = until("somebody takes it", ask).await;
    assert_eq!((sent.version(), sent.status().as_u16()), (Version::HTTP_2, 200));
    assert_eq!(sha256_of(&file(&site.active("t", "other").await)), sha256(&disk));
    node.assert_clean();
}

#[tokio::test]
async fn curl_sends_and_fetches_and_goes_on() {
    let (site, node, _staff) = staffed("curl", &ADDRESS).await;
    waiting(&site, "disk", "s", json!({})).await;
    let (door, disk) = (Door::of(&site, &node).await, raw(1, SIZE));
    let token = site.token("t", "editor", &["vitrine-edit", "vitrine-view"]).await;
    let dir = site.lab.plane.scope().dir();
    let [bundle, sent, got] = ["curl.crt", "curl.raw", "curl.got"].map(|name| dir.join(name));
    std::fs::write(&bundle, door.bundle().await).unwrap();
    std::fs::write(&sent, &disk).unwrap();
    let curl = async |more: &[&str]| {
        let mut command = tokio::process::Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "120"]);
        command.arg("--cacert").arg(&bundle).args(["--header", &format!("Authorization: Bearer {token}")]);
        let output = command.args(more).arg(door.url("t", "disk")).output().await.unwrap();
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // It asks whether it may with `Expect: 100-continue`, and tries again while no node waits.
    curl(&["--retry", "9", "--upload-file", sent.to_str().unwrap()]).await;
    let image = site.active("t", "disk").await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    for version in ["--http1.1", "--http2"] {
        std::fs::write(&got, &disk[..SIZE / 2]).unwrap();
        curl(&[version, "--continue-at", "-", "--output", got.to_str().unwrap()]).await;
        assert_eq!(sha256_of(&got), sha256(&disk), "{version}");
    }
}

#[tokio::test]
async fn an_upload_that_is_cut_goes_on_where_it_was() {
    let site = Site::shared("steps").await;
    let (here, there) = (site.lab.node("here").await, site.lab.node("there").await);
    let _operator = site.operator(&[]);
    // A pause in what is passed on is longer than an agent waits for another's answer.
    let _here = site.lab.start(&here, &[&ADDRESS[..], &["--store-stall-timeout", "4"]].concat());
    let _there = site.lab.start(&there, &ADDRESS);
    site.store("s", &there.store(), false, Some(&there)).await;
    let (disk, token) = (raw(1, SIZE), site.token("t", "editor", &["vitrine-edit"]).await);
    // By way of an agent that has nothing to do with it, and of the one that has.
    for (name, node, pause) in [("direct", &there, 0), ("passed", &here, 10)] {
        waiting(&site, name, "s", json!({ "checksum": sha256(&disk) })).await;
        let door = Door::of(&site, node).await;
        let can = door.ask(Method::OPTIONS, name, "", &[]).await;
        assert_eq!((can.status().as_u16(), &can.headers()["tus-version"]), (204, &"1.0.0".parse().unwrap()));
        let length = SIZE.to_string();
        let made = send(&door, Method::POST, name, &token, &[TUS, ("upload-length", &length)], b"").await;
        assert_eq!(made.status(), 201);
        assert!(door.url("t", name).ends_with(made.headers()["location"].to_str().unwrap()));
        assert_eq!(offset(&door, name, &token).await, 0);
        let client = door.client(Version::HTTP_11).await;
        let paused = disk[SIZE / 4..SIZE / 3].to_vec();
        let late = async move |delay, what| {
            tokio::time::sleep(delay).await;
            what
        };
        let cut = stream::iter([Ok(disk[..SIZE / 4].to_vec())])
            .chain(stream::once(late(Duration::from_secs(pause), Ok(paused))))
            .chain(stream::once(late(Duration::from_millis(500), Err(std::io::Error::other("cut")))));
        let patch = client.patch(door.url("t", name)).bearer_auth(&token).header(TUS.0, TUS.1).header(PIECE.0, PIECE.1);
        patch.header("upload-offset", "0").body(Body::wrap_stream(cut)).send().await.unwrap_err();
        // What was on its way arrives, and then the agent sees that no more comes.
        let third = async || {
            let at = offset(&door, name, &token).await;
            let probe =
                send(&door, Method::PATCH, name, &token, &[TUS, PIECE, ("upload-offset", &at.to_string())], b"").await;
            (at == SIZE / 3 && probe.status() == 204).then_some(at)
        };
        let at = until("a third has arrived", third).await;
        let wrong = send(&door, Method::PATCH, name, &token, &[TUS, PIECE, ("upload-offset", "1")], b"x").await;
        assert_eq!(refusal(wrong).await.0, 409);
        let old = send(&door, Method::PATCH, name, &token, &[PIECE, ("upload-offset", "1")], b"x").await;
        assert_eq!((old.headers()["tus-version"].to_str().unwrap(), old.status().as_u16()), ("1.0.0", 412));
        let kind = send(&door, Method::PATCH, name, &token, &[TUS, ("upload-offset", "1")], b"x").await;
        assert_eq!(kind.status(), 415);
        let next = [TUS, PIECE, ("upload-offset", &at.to_string())];
        let some = send(&door, Method::PATCH, name, &token, &next, &disk[at..SIZE - 1]).await;
        assert_eq!((some.status().as_u16(), number(&some, "upload-offset")), (204, SIZE - 1));
        let last = [TUS, PIECE, ("upload-offset", &(SIZE - 1).to_string())];
        let too_much = send(&door, Method::PATCH, name, &token, &last, &[0; 2]).await;
        assert_eq!(refusal(too_much).await.0, 400);
        let done = send(&door, Method::PATCH, name, &token, &last, &disk[SIZE - 1..]).await;
        assert_eq!((done.status().as_u16(), number(&done, "upload-offset")), (204, SIZE));
        assert_eq!(sha256_of(&file(&site.active("t", name).await)), sha256(&disk));
    }
    there.assert_clean();
}

#[tokio::test]
async fn what_is_no_image_is_answered_with_the_rule() {
    let site = Site::shared("unfit").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) =
        (site.operator(&[]), site.lab.start(&node, &[&ADDRESS[..], &["--max-size", "67108864"]].concat()));
    site.store("s", &node.store(), false, None).await;
    let dir = site.lab.plane.scope().dir();
    let (base, overlay) = (dir.join("unfit.raw"), dir.join("unfit.qcow2"));
    std::fs::write(&base, raw(1, 1 << 20)).unwrap();
    let [base_, overlay_] = [&base, &overlay].map(|path| path.to_str().unwrap());
    qemu::qemu_img(&["create", "-q", "-f", "qcow2", "-b", base_, "-F", "raw", overlay_]).unwrap();
    let (door, token) = (Door::of(&site, &node).await, site.token("t", "editor", &["vitrine-edit"]).await);
    waiting(&site, "overlay", "s", json!({})).await;
    let too_large = [TUS, ("upload-length", "67108865")];
    assert_eq!(refusal(send(&door, Method::POST, "overlay", &token, &too_large, b"").await).await.0, 413);
    // Followed by far more than is ever read of it.
    let body = [std::fs::read(&overlay).unwrap(), vec![1; 32 << 20]].concat();
    let (code, reason, message) = refusal(send(&door, Method::PUT, "overlay", &token, &[], &body).await).await;
    assert_eq!((code, reason.as_str()), (422, "Invalid"), "{message}");
    assert!(message.starts_with("backing-file: "), "{message}");
    let image = site.stalled("t", "overlay").await;
    let failure = image.status.unwrap().attempt.unwrap().last_failure.unwrap();
    assert_eq!(failure.rule.as_deref(), Some("backing-file"));
    let (code, _, message) = refusal(send(&door, Method::PUT, "overlay", &token, &[], b"x").await).await;
    assert!(code == 409 && message.contains("vitrine.dev/retry"), "{code} {message}");
    // A person asks for another try, and sends what is good.
    site.patch("overlay", json!({ "metadata": { "annotations": { "vitrine.dev/retry": "1" } } })).await;
    until_waiting(&site, "overlay").await;
    assert_eq!(send(&door, Method::PUT, "overlay", &token, &[], &raw(2, SIZE)).await.status(), 200);
    site.active("t", "overlay").await;
    waiting(&site, "wrong", "s", json!({ "checksum": sha256(b"another") })).await;
    let (code, _, message) = refusal(send(&door, Method::PUT, "wrong", &token, &[], &raw(1, SIZE)).await).await;
    assert!(code == 422 && message.starts_with("checksum-mismatch: "), "{code} {message}");
    node.assert_clean();
}

#[tokio::test]
async fn an_agent_that_dies_in_mid_upload_has_it_begin_anew() {
    let (site, node, [_operator, agent]) = staffed("begin-anew", &ADDRESS).await;
    let (disk, token) = (raw(1, SIZE), site.token("t", "editor", &["vitrine-edit"]).await);
    waiting(&site, "disk", "s", json!({})).await;
    let door = Door::of(&site, &node).await;
    let length = [TUS, ("upload-length", &SIZE.to_string())];
    assert_eq!(send(&door, Method::POST, "disk", &token, &length, b"").await.status(), 201);
    let half =
        send(&door, Method::PATCH, "disk", &token, &[TUS, PIECE, ("upload-offset", "0")], &disk[..SIZE / 2]).await;
    assert_eq!((half.status().as_u16(), number(&half, "upload-offset")), (204, SIZE / 2));
    drop(agent);
    let _agent = site.lab.start(&node, &ADDRESS);
    let before = door.address;
    let anew = async || {
        let door = Door::of(&site, &node).await;
        (door.address != before).then_some(door)
    };
    let door = until("the next agent serves", anew).await;
    assert_eq!(offset(&door, "disk", &token).await, 0);
    let lost = [TUS, PIECE, ("upload-offset", &(SIZE / 2).to_string())];
    assert_eq!(send(&door, Method::PATCH, "disk", &token, &lost, &disk[SIZE / 2..]).await.status(), 404);
    assert_eq!(send(&door, Method::PUT, "disk", &token, &[], &disk).await.status(), 200);
    assert_eq!(sha256_of(&file(&site.active("t", "disk").await)), sha256(&disk));
    node.assert_clean();
}

#[tokio::test]
async fn who_may_not_or_does_not_go_on_is_not_waited_for() {
    let site = Site::shared("not-on").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) =
        (site.operator(&[]), site.lab.start(&node, &[&ADDRESS[..], &["--upload-idle-timeout", "2"]].concat()));
    site.store("s", &node.store(), false, None).await;
    let disk = raw(1, SIZE);
    let token = site.token("t", "editor", &["vitrine-edit"]).await;
    let viewer = site.token("t", "viewer", &["vitrine-view"]).await;
    waiting(&site, "disk", "s", json!({})).await;
    let door = Door::of(&site, &node).await;
    for name in ["disk", "nothing"] {
        assert_eq!(refusal(send(&door, Method::PUT, name, &viewer, &[], b"x").await).await.0, 403);
        assert_eq!(refusal(send(&door, Method::PUT, name, "", &[], b"x").await).await.0, 401);
    }
    assert_eq!(refusal(send(&door, Method::PUT, "nothing", &token, &[], b"x").await).await.0, 404);
    let failed = |image: &Image| {
        let failure = image.status.as_ref().and_then(|status| status.attempt.as_ref()?.last_failure.clone());
        failure.map(|failure| failure.message).unwrap_or_default()
    };
    let begin = async || {
        let length = [TUS, ("upload-length", &*SIZE.to_string())];
        assert_eq!(send(&door, Method::POST, "disk", &token, &length, b"").await.status(), 201);
        let some =
            send(&door, Method::PATCH, "disk", &token, &[TUS, PIECE, ("upload-offset", "0")], &disk[..SIZE / 2]).await;
        assert_eq!(some.status(), 204);
    };
    begin().await;
    site.wait_for("t", "disk", "was given up", |image| failed(image).contains("no byte has come for 2 s")).await;
    until_waiting(&site, "disk").await;
    assert_eq!(offset(&door, "disk", &token).await, 0);
    begin().await;
    assert_eq!(send(&door, Method::DELETE, "disk", &token, &[TUS], b"").await.status(), 204);
    site.wait_for("t", "disk", "was given up again", |image| failed(image).contains("given up by who began it")).await;
    until_waiting(&site, "disk").await;
    assert_eq!(send(&door, Method::PUT, "disk", &token, &[], &disk).await.status(), 200);
    let image = site.active("t", "disk").await;
    assert!(is(&image, "Ready", "True"));
    node.assert_clean();
}

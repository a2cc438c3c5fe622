//! `vitrine clone` and `vitrine children`, against a real Ceph cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::sync::OnceCell;
use vitrine_engine::{
    error::Kind,
    model::{
        ContainerFormat, ContentManifest, DiskFormat, Evidence, ObjectKey, OutputFormat, Properties, Received, Verified,
    },
    store::{
        Store as _,
        rbd::{RbdCluster, RbdOptions, RbdStore},
    },
};
use vitrine_harness::{CephCluster, port::PortLease};

use crate::program::{Ran, run};

const POOL: &str = "images";
const LENGTH: usize = 9 << 20;

/// The cluster with the pools that all tests share, and the users' keys in files.
struct Ceph {
    cluster: &'static CephCluster,
    files: PathBuf,
}

async fn ceph() -> &'static Ceph {
    static READY: OnceCell<Ceph> = OnceCell::const_new();
    READY
        .get_or_init(|| async {
            let cluster = CephCluster::shared().await.unwrap();
            for pool in [POOL, "volumes", "private"] {
                cluster.create_pool(pool).await.unwrap();
            }
            let all = [("mon", "profile rbd"), ("osd", "profile rbd")];
            let few = [("mon", "profile rbd"), ("osd", "profile rbd pool=images, profile rbd pool=volumes")];
            let files = cluster.scope().dir().to_owned();
            for (name, caps) in [("vitrine", all), ("limited", few)] {
                let key = cluster.create_user(name, &caps).await.unwrap();
                let keyring = format!("[client.other]\n\tkey = none\n[client.{name}]\n\tkey = {key}\n");
                fs::write(files.join(format!("{name}.keyring")), keyring).unwrap();
                fs::write(files.join(format!("{name}.key")), format!("{key}\n")).unwrap();
            }
            Ceph { cluster, files }
        })
        .await
}

/// An object of its own in the pool: its store, its key, its location and its bytes.
struct Object {
    store: RbdStore,
    key: ObjectKey,
    url: String,
    bytes: Vec<u8>,
}

impl Ceph {
    fn file(&self, name: &str) -> String {
        self.files.join(name).to_str().unwrap().to_owned()
    }

    /// Runs the program with the usual user's key.
    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_as("vitrine", arguments)
    }

    fn run_as(&self, user: &str, arguments: &[&str]) -> Ran {
        let (monitors, keyring) = (self.cluster.monitors(), self.file(&format!("{user}.keyring")));
        run(arguments.iter().copied().chain([
            "--ceph-monitors",
            &monitors,
            "--ceph-user",
            user,
            "--ceph-keyring",
            &keyring,
        ]))
    }

    async fn object(&self) -> Object {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let secret = fs::read_to_string(self.files.join("vitrine.key")).unwrap();
        let options = RbdOptions::new(RbdCluster::Monitors(self.cluster.monitors()), "vitrine", secret.trim(), POOL);
        let store = tokio::task::spawn_blocking(move || RbdStore::open("ceph", &options)).await.unwrap().unwrap();
        let key = ObjectKey::new(&format!("5f0c5c26-{number}"), 3).unwrap();
        let mut bytes = vec![0; LENGTH];
        bytes[5 << 20..][..5000].fill(u8::try_from(number).unwrap());
        let mut sink = store.create(&key, 1, OutputFormat::RAW).await.unwrap();
        sink.write_at(5 << 20, bytes[5 << 20..][..5000].to_vec().into()).await.unwrap();
        let url = sink.commit(LENGTH as u64, &proof()).await.unwrap().url;
        Object { store, key, url, bytes }
    }

    fn exported(&self, image: &str) -> Vec<u8> {
        let file = self.files.join(image.replace('/', "-"));
        self.cluster.rbd(&["export", "--no-progress", image, file.to_str().unwrap()]).unwrap();
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(file).unwrap();
        bytes
    }
}

fn proof() -> Verified {
    Verified::try_from(Evidence {
        received: Received { length: LENGTH as u64, digests: vec![] },
        declared: vec![],
        source_format: DiskFormat::Raw,
        container_format: ContainerFormat::Bare,
        properties: Properties::new(),
        request: None,
        violations: vec![],
        manifest: ContentManifest { virtual_size: LENGTH as u64, chunks: vec![] },
    })
    .unwrap()
}

/// The message of a run that failed with exit code 1; no key of `ceph` is in it.
fn refused(ceph: &Ceph, ran: Ran, parts: &[&str]) {
    let said = ran.expect(1).stderr;
    for part in parts {
        assert!(said.contains(part), "{part} in {said}");
    }
    let key = fs::read_to_string(ceph.files.join("vitrine.key")).unwrap();
    assert!(!said.contains(key.trim()), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_has_the_bytes_is_listed_and_holds_its_object() {
    let (ceph, fsid) = (ceph().await, ceph().await.cluster.fsid());
    let object = ceph.object().await;
    let none = ceph.run(&["children", &object.url, "-o", "json"]).expect(0).json();
    assert_eq!((&none["parent"], &none["children"]), (&object.url.as_str().into(), &serde_json::json!([])));
    let made = ceph.run(&["clone", &object.url, "volumes/disk-1", "-o", "json"]).expect(0).json();
    assert_eq!(made["url"], format!("rbd://{fsid}/volumes/disk-1"));
    assert_eq!(made["parent"], object.url.as_str());
    assert!(ceph.exported("volumes/disk-1") == object.bytes);
    // Another one in a namespace, of the object as rbd names it.
    ceph.cluster.create_namespace("volumes", "tenant").await.unwrap();
    let spec = format!("{POOL}/{}", object.key);
    let told = ceph.run(&["clone", &spec, "volumes/tenant/disk"]).expect(0).stdout;
    assert!(told.contains(&format!("rbd://{fsid}/volumes/tenant/disk")) && told.contains(&object.url), "{told}");
    assert!(ceph.exported("volumes/tenant/disk") == object.bytes);
    let listed = ceph.run(&["children", &format!("{spec}@snap"), "-o", "json"]).expect(0).json();
    assert_eq!(listed["children"], serde_json::json!(["volumes/disk-1", "volumes/tenant/disk"]));
    let table = ceph.run(&["children", &spec]).expect(0).stdout;
    assert!(table.lines().any(|line| line.trim() == "volumes/tenant/disk"), "{table}");

    let error = object.store.delete(&object.key, 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InUse, "{error}");
    for name in ["volumes/disk-1", "volumes/tenant/disk"] {
        assert!(error.to_string().contains(name), "{error}");
        ceph.cluster.rbd(&["rm", "--no-progress", name]).unwrap();
    }
    object.store.delete(&object.key, 1).await.unwrap();
    refused(ceph, ceph.run(&["clone", &object.url, "volumes/late"]), &["pool images", &object.key.to_string()]);
    refused(ceph, ceph.run(&["children", &object.url]), &["pool images", &object.key.to_string(), "import it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_named() {
    let ceph = ceph().await;
    let object = ceph.object().await;
    let key = object.key.to_string();
    ceph.run(&["clone", &object.url, "volumes/taken"]).expect(0);
    let clone = |target: &str| ceph.run(&["clone", &object.url, target]);
    refused(ceph, clone("volumes/taken"), &["store ceph", "pool images", &key, "volumes/taken", "choose another"]);
    refused(ceph, clone("attic/disk"), &[&key, "no pool attic", "ceph osd pool create attic"]);
    refused(ceph, clone("volumes/nowhere/disk"), &[&key, "rbd namespace create volumes/nowhere"]);
    refused(ceph, clone("attic/nowhere/disk"), &[&key, "no pool attic"]);
    // It would be in the way of an object of that name, or be swept as a leftover.
    for own in [format!("{POOL}/5f0c-r1"), format!("{POOL}/.vitrine-partial-x-r1-a1-0000000000000001")] {
        refused(ceph, clone(&own), &["the store's own", "choose another"]);
    }
    let denied = ceph.run_as("limited", &["clone", &object.url, "private/disk"]);
    refused(ceph, denied, &[&key, "client.limited", "profile rbd pool=private", "ceph auth caps"]);
    let elsewhere = object.url.replace(ceph.cluster.fsid(), "00000000-0000-0000-0000-000000000000");
    refused(
        ceph,
        ceph.run(&["clone", &elsewhere, "volumes/x"]),
        &[ceph.cluster.fsid(), "--ceph-conf or --ceph-monitors"],
    );
    let no_pool = object.url.replace("/images/", "/cellar/");
    refused(ceph, ceph.run(&["children", &no_pool]), &["no pool cellar"]);
    let left = ceph.run(&["children", &object.url, "-o", "json"]).expect(0).json();
    assert_eq!(left["children"], serde_json::json!(["volumes/taken"]), "nothing else was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_from_files() {
    let ceph = ceph().await;
    let object = ceph.object().await;
    let (monitors, key_file) = (ceph.cluster.monitors(), ceph.file("vitrine.key"));
    let at = ["children", &object.url, "--ceph-monitors", &monitors];
    let with = |more: &[&str]| run(at.iter().chain(more));
    with(&["--ceph-user", "client.vitrine", "--ceph-key-file", &key_file]).expect(0);
    let config = ceph.files.join("client.conf");
    fs::write(&config, format!("[global]\nmon_host = {monitors}\n")).unwrap();
    let config = config.to_str().unwrap();
    let user = ["--ceph-user", "vitrine", "--ceph-key-file", &key_file];
    run(["children", &object.url, "--ceph-conf", config].iter().chain(&user)).expect(0);

    let wrong = ["--ceph-user", "vitrine", "--ceph-key-file", &ceph.file("limited.key")];
    refused(ceph, with(&wrong), &["pool images", "client.vitrine", "ceph auth get client.vitrine"]);
    let keyring = ceph.file("vitrine.keyring");
    refused(ceph, with(&["--ceph-user", "nobody", "--ceph-keyring", &keyring]), &["no key of client.nobody", &keyring]);
    refused(
        ceph,
        with(&["--ceph-user", "vitrine", "--ceph-key-file", &keyring]),
        &["is not one key", "--ceph-keyring"],
    );
    refused(ceph, with(&["--ceph-user", "none"]), &["/etc/ceph/ceph.client.none.keyring", "--ceph-key-file"]);
    assert!(!Path::new("/etc/ceph/ceph.conf").exists(), "the tests' clusters are not those of the machine");
    refused(
        ceph,
        run(["children", &object.url, "--ceph-key-file", &key_file]),
        &["/etc/ceph/ceph.conf", "--ceph-monitors"],
    );
    // A monitor that is not there.
    let nobody = PortLease::reserve().unwrap();
    let away = format!("[v2:127.0.0.1:{}]", nobody.port());
    let absent = run(["children", &object.url, "--ceph-monitors", &away, "--ceph-timeout", "1"].iter().chain(&user));
    refused(ceph, absent, &[&away, "have not answered"]);
}

#[test]
fn names_that_are_none_are_a_wrong_command_line() {
    for object in ["images", "images/volume-1", "rbd://fsid/images/x-r1", "a/b/c/x-r1"] {
        let said = run(["children", object]).expect(2).stderr;
        assert!(said.contains("IMAGE") || said.contains("UID-rREVISION"), "{said}");
    }
    for target in ["disk", "volumes/", "a/b/c/d", "volumes/disk@snap"] {
        let said = run(["clone", "images/x-r1", target]).expect(2).stderr;
        assert!(said.contains("POOL/NAME"), "{said}");
    }
}

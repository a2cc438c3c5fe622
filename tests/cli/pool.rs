//! A pool of a real Ceph cluster as the target.

use vitrine_harness::CephCluster;

use crate::program::{assert_same_disk, debian, run};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_into_a_pool_and_what_is_wrong_is_named() {
    let ceph = CephCluster::start().await.unwrap();
    ceph.create_pool("images").await.unwrap();
    ceph.create_namespace("images", "team").await.unwrap();
    let config = ceph.config();
    let (config, keyring) = (config.to_str().unwrap(), config.with_file_name("keyring"));
    let source = debian("zlib.qcow2");
    let import = |store: &str, more: &[&str]| {
        let fixed = [
            "import",
            source.to_str().unwrap(),
            "--store",
            store,
            "--ceph-conf",
            config,
            "--name",
            "debian",
            "-o",
            "json",
        ];
        run(fixed.iter().chain(["--ceph-keyring", keyring.to_str().unwrap()].iter()).chain(more))
    };

    let told = import("rbd:images/team", &[]).expect(0).json();
    let url = told["url"].as_str().unwrap().to_owned();
    let image = url.strip_prefix(&format!("rbd://{}/images/team/", ceph.fsid())).unwrap_or_else(|| panic!("{url}"));
    let copy = ceph.scope().dir().join("exported");
    ceph.rbd(&[
        "export",
        "--no-progress",
        &format!("images/team/{}", image.replace("/snap", "@snap")),
        copy.to_str().unwrap(),
    ])
    .unwrap();
    assert_same_disk(&copy, "raw", &source, "qcow2");

    let again = import("rbd:images/team", &[]).expect(1);
    assert!(again.stderr.contains(&url) && again.stderr.contains("choose another --name"), "{}", again.stderr);
    for (store, more, said) in [
        ("rbd:images/nobody", &[][..], "nobody"),
        ("rbd:missing", &[], "missing"),
        ("rbd:", &[], "rbd:POOL/NAMESPACE"),
        ("rbd:images/a/b", &[], "rbd:POOL/NAMESPACE"),
        ("rbd:images", &["--ceph-user", "glance"], "has no key of client.glance"),
    ] {
        let refused = import(store, more).expect(1);
        assert!(refused.stderr.contains(said), "{store}: {}", refused.stderr);
    }
}

//! `kubectl vitrine` with the very commands that `docs/kubectl-vitrine.md` tells people to use: by a forwarded port, with nothing exposed.

use std::fs;

use crate::{
    data::{TEAM, commands, desk, make_team, sha256},
    site::{SPACE, debian, site},
};
use vitrine_harness::qemu;

const DOCUMENT: &str = include_str!("../../docs/kubectl-vitrine.md");

/// Goes on with what was interrupted by the command that was printed, as it stands there. An upload that was too quick to be interrupted
/// fails.
const INTERRUPTED: &str = r#"
code=0
timeout --preserve-status --signal=INT --foreground 3 kubectl vitrine image upload large.raw --namespace team 2>said || code=$?
cat said
test $code = 130
grep -q 'interrupted after' said
again=$(sed -n 's/^to go on with it: //p' said)
echo "$again" | grep -q '^kubectl vitrine image upload large.raw large --namespace team'
eval "$again"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_in_and_out_by_a_forwarded_port() {
    let site = site().await;
    let desk = desk(&site, "plugin").await;
    make_team(&desk).await;
    let given = debian("zlib.qcow2");
    fs::copy(&given, desk.folder().join("appliance.qcow2")).unwrap();
    desk.run(&commands(DOCUMENT, "kubectl vitrine image upload")).await;
    let (copy, given) = (desk.folder().join("copy.raw"), given.display().to_string());
    qemu::qemu_img(&["compare", "-f", "raw", "-F", "qcow2", copy.to_str().unwrap(), &given]).unwrap();

    desk.run(&commands(DOCUMENT, "kubectl vitrine image download appliance --namespace")).await;
    let converted = desk.folder().join("appliance-copy.qcow2");
    qemu::qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2", converted.to_str().unwrap(), &given]).unwrap();

    // Not compressible and with no holes, so that it takes its time.
    let large: Vec<u8> =
        (0..(1_u64 << 29) / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    fs::write(desk.folder().join("large.raw"), large).unwrap();
    desk.run(INTERRUPTED).await;
    desk.run("kubectl vitrine image download large --file back.raw --namespace team").await;
    assert_eq!(sha256(&desk.folder().join("back.raw")), sha256(&desk.folder().join("large.raw")));
    let lent = site.get(&["serviceaccounts,roles,rolebindings", "-n", TEAM, "-l", "vitrine.dev/transfer=true"]).await;
    assert_eq!(lent["items"], serde_json::json!([]), "what was lent is given back");

    let log = desk.run("kubectl vitrine task logs large --namespace team").await;
    assert!(log.contains("begun action=Import") && !log.contains("appliance"), "{log}");
    let health = desk.run("kubectl vitrine doctor").await;
    for part in ["2 pods are ready", "one is ready on each of 2 nodes", "proves who it is", "0 problems"] {
        assert!(health.contains(part), "{part} in {health}");
    }
    let version = desk.run("kubectl vitrine version").await;
    assert_eq!(version.matches(env!("CARGO_PKG_VERSION")).count(), 3, "client, operator, agents: {version}");
    // Who may not forward a port is told so, and by which role they might.
    desk.run(&format!(
        "! kubectl vitrine image download large --namespace {TEAM} --as system:serviceaccount:{TEAM}:builder --service-account builder 2>said
         grep --quiet 'vitrine-forward' said
         kubectl create rolebinding team-forwards --role vitrine-forward --serviceaccount {TEAM}:builder --namespace {SPACE}
         TOKEN=$(kubectl --namespace {TEAM} create token builder)
         sleep 2
         kubectl vitrine image download appliance --file once.raw --namespace {TEAM} --token $TOKEN
         kubectl delete rolebinding team-forwards --namespace {SPACE}
         kubectl vitrine image delete large appliance --namespace {TEAM} --wait --timeout 2m"
    ))
    .await;
}

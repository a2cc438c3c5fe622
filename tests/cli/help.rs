//! What a person sees first.

use std::process::{Command, Stdio};

use crate::program::{Ran, run, vitrine};

const VERBS: [&str; 7] = ["inspect", "convert", "import", "checksum", "clone", "children", "crds"];

#[test]
fn every_verb_explains_itself_and_its_exit_codes() {
    let help = run(["--help"]).expect(0).stdout;
    for verb in VERBS {
        assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} in {help}");
        let own = run([verb, "--help"]).expect(0).stdout;
        assert!(own.contains(&format!("Usage: vitrine {verb}")), "{own}");
        assert!(verb == "crds" || own.contains("Exit codes:"), "{own}");
    }
    assert!(help.contains("3    the image is refused"), "{help}");
    run(["--version"]).expect(0);
}

#[test]
fn verbs_of_a_cluster_explain_themselves_as_kubectl_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-vitrine");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vitrine"), &plugin).unwrap();
    let verbs = [
        ("image", "list show create upload download save set unset delete deactivate reactivate copy import"),
        ("store", "list show probe"),
        ("task", "list logs"),
    ];
    for (group, verbs) in verbs {
        for verb in verbs.split(' ') {
            let own: Ran = Command::new(&plugin).args([group, verb, "--help"]).output().unwrap().into();
            let own = own.expect(0).stdout;
            assert!(own.contains(&format!("Usage: kubectl vitrine {group} {verb}")), "{own}");
            assert!(own.contains("Exit codes:") && own.contains("--kubeconfig"), "{own}");
            let same = run([group, verb, "--help"]).expect(0).stdout;
            assert!(same.contains(&format!("Usage: vitrine {group} {verb}")), "{same}");
        }
    }
    for verb in ["doctor", "version", "completion"] {
        run([verb, "--help"]).expect(0);
    }
}

#[test]
fn scripts_for_shells_are_scripts() {
    for shell in ["bash", "kubectl"] {
        let script = run(["completion", shell]).expect(0).stdout;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, script).unwrap();
        assert!(Command::new("bash").arg("-n").arg(&path).status().unwrap().success(), "{shell}");
    }
    // What kubectl runs to complete `kubectl vitrine image del`.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vitrine"), folder.path().join("kubectl-vitrine")).unwrap();
    let script = folder.path().join("kubectl_complete-vitrine");
    std::fs::write(&script, run(["completion", "kubectl"]).expect(0).stdout).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let completed: Ran =
        Command::new("bash").arg(&script).args(["image", "del"]).env("PATH", path).output().unwrap().into();
    assert_eq!(completed.expect(0).stdout, "delete\n:4\n");
}

#[test]
fn a_wrong_command_line_is_2() {
    run(["frobnicate"]).expect(2);
    run(["convert", "a"]).expect(2);
    run(["convert", "a", "b", "-O", "floppy"]).expect(2);
    run(["checksum", "-a", "crc32", "a"]).expect(2);
    assert!(run([] as [&str; 0]).expect(2).stderr.contains("Usage"));
}

#[test]
fn the_definitions_are_printed() {
    let text = run(["crds"]).expect(0).stdout;
    for kind in ["Image", "ImageStore", "ImageTask", "NodeCache"] {
        assert!(text.contains(&format!("kind: {kind}\n")), "{kind}");
    }
}

#[test]
fn the_reference_is_written_a_file_for_each_kind() {
    let folder = tempfile::tempdir().unwrap();
    run(["crds", "--format", "markdown", "--output", folder.path().to_str().unwrap()]).expect(0);
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "vitrine.dev_images.md",
            "vitrine.dev_imagestores.md",
            "vitrine.dev_imagetasks.md",
            "vitrine.dev_nodecaches.md"
        ]
    );
    let text = std::fs::read_to_string(folder.path().join("vitrine.dev_images.md")).unwrap();
    assert!(text.contains("| `spec.source.http.url` | string"), "{text}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = vitrine(["crds"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

//! What a person sees first.

use std::process::Stdio;

use crate::program::{run, vitrine};

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
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = vitrine(["crds"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

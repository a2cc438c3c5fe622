//! The structure of the tree, held by tests: who may import whom, who may know Kubernetes, what lies at the top, and that generated
//! files are fresh.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end by panicking; clippy.toml allows it in #[test] functions only, not in what they call"
)]

mod documents;
mod imports;

use std::{collections::BTreeSet, fs, path::Path};

use vitrine::api;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn crds_are_what_the_types_say() {
    let folder = root().join("crds");
    let mut expected = BTreeSet::new();
    for crd in api::crds() {
        let name = api::crd_file_name(&crd);
        let found = fs::read_to_string(folder.join(&name)).unwrap_or_default();
        let wanted = api::crd_yaml(&crd).unwrap();
        assert!(found == wanted, "crds/{name} is stale: run `cargo run -- crds --output crds`");
        expected.insert(name);
    }
    let found: BTreeSet<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, expected, "crds/ holds the definitions and nothing else");
}

/// Flux leaves links out of what it takes from git, so a chart with one cannot be installed from there. Links lead into the chart instead.
#[test]
fn the_chart_holds_files_and_no_links() {
    let mut folders = vec![root().join("charts")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            assert!(
                !kind.is_symlink(),
                "{}: put the file here, and a link where the link leads to",
                entry.path().display()
            );
            folders.extend(kind.is_dir().then(|| entry.path()));
        }
    }
    let crds = |folder: &str| {
        let files = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.map(|file| file.canonicalize().unwrap()).collect::<BTreeSet<_>>()
    };
    assert_eq!(crds("charts/vitrine/files/crds"), crds("crds"), "one text of each definition");
}

#[test]
fn the_top_of_the_tree_is_as_designed() {
    let allowed = [
        ".ci",
        ".git",
        ".gitignore",
        "Cargo.lock",
        "Cargo.toml",
        "Makefile",
        "README.md",
        "charts",
        "clippy.toml",
        "config",
        "crds",
        "docs",
        "rustfmt.toml",
        "src",
        "target",
        "tests",
    ];
    let stray: Vec<_> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !allowed.contains(&name.as_str()))
        .collect();
    assert!(
        stray.is_empty(),
        "{stray:?} at the top of the tree: find them a place below src, tests, docs, config or charts"
    );
}

#[test]
fn imports_point_one_way() {
    let wrong = imports::against_the_arrows(&root().join("src"));
    assert!(wrong.is_empty(), "imports against the arrows of src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_cluster_side_knows_kubernetes() {
    let wrong = imports::kubernetes_in_the_engine(&root().join("src"));
    assert!(
        wrong.is_empty(),
        "kube and k8s_openapi belong to api, kube, controller, agent, http, client and cli:\n{}",
        wrong.join("\n")
    );
}

//! Reads every path in `src` that begins with `crate` or `super`, or names a Kubernetes crate, and compares it with the layers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use syn::visit::{self, Visit};

/// Each layer may import those before it. Modules of one layer never import each other.
const LAYERS: [&[&str]; 12] = [
    &["model"],
    &["error"],
    &["io"],
    &["source", "unpack", "format", "verify", "store"],
    &["pipeline"],
    &["cache", "peer"],
    &["api"],
    &["kube"],
    &["controller", "agent", "http", "client"],
    &["cli"],
    &["telemetry"],
    &["main"],
];

/// Who may name Kubernetes' crates.
const KUBERNETES: [&str; 7] = ["api", "kube", "controller", "agent", "http", "client", "cli"];
const KUBERNETES_CRATES: [&str; 4] = ["kube", "kube_runtime", "kube_client", "k8s_openapi"];

/// Every import that points the wrong way, as `file: module → target`.
pub fn against_the_arrows(src: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in rust_files(src) {
        let Some(module) = module_of(src, &file).first().cloned() else { continue };
        for path in paths_in(src, &file) {
            let Some(target) = inner_module(&path) else { continue };
            if !may_import(&module, &target) {
                wrong.push(format!("{}: {module} → {target}", file.display()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

/// Every use of a Kubernetes crate on the engine's side.
pub fn kubernetes_in_the_engine(src: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in rust_files(src) {
        let Some(module) = module_of(src, &file).first().cloned() else { continue };
        if KUBERNETES.contains(&module.as_str()) {
            continue;
        }
        let named = paths_in(src, &file).into_iter().filter(|path| {
            path.len() > 1 && path.first().is_some_and(|first| KUBERNETES_CRATES.contains(&first.as_str()))
        });
        wrong.extend(named.map(|path| format!("{}: {}", file.display(), path.join("::"))));
    }
    wrong
}

fn may_import(module: &str, target: &str) -> bool {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    match (layer(module), layer(target)) {
        // The command line stands above all of them, and talks to a cluster by `client` alone.
        (Some(_), Some(_)) if module == "cli" && ["controller", "agent", "http"].contains(&target) => false,
        (Some(from), Some(to)) => module == target || to < from,
        (None, _) => panic!("src/{module} has no layer: give it one in tests/structure/imports.rs and in src/lib.rs"),
        (_, None) => false,
    }
}

/// The module of either crate that `path` leads into. What the two call their modules is never the same, so one name says which.
fn inner_module(path: &[String]) -> Option<String> {
    match path.first().map(String::as_str) {
        Some("crate" | "vitrine" | "vitrine_engine") => path.get(1).cloned(),
        _ => None,
    }
}

/// The module path of a file in its crate: `src/a/b.rs` and `src/engine/a/b.rs` are `[a, b]`; a `lib.rs` has none and only lists modules.
fn module_of(src: &Path, file: &Path) -> Vec<String> {
    let inner = file.strip_prefix(src).unwrap().with_extension("");
    let inner = inner.strip_prefix("engine").unwrap_or(&inner);
    let mut module: Vec<_> = inner.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// Every file of Rust in a folder and those below it.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Every path in a file, with `self` and `super` resolved against the module it stands in.
fn paths_in(src: &Path, file: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(file).unwrap();
    let tree = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut collector = Collector { module: module_of(src, file), found: Vec::new() };
    collector.visit_file(&tree);
    collector.found
}

struct Collector {
    module: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Collector {
    fn add(&mut self, path: Vec<String>) {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let here = usize::from(path.first().is_some_and(|first| first == "self"));
        if ups + here == 0 {
            self.found.push(path);
            return;
        }
        let mut resolved = vec!["crate".to_owned()];
        resolved.extend(self.module.iter().take(self.module.len().saturating_sub(ups)).cloned());
        resolved.extend(path.into_iter().skip(ups + here));
        self.found.push(resolved);
    }

    fn add_tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |ident: &syn::Ident| [prefix, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.add_tree(prefix, item)),
            syn::UseTree::Name(name) => self.add(with(&name.ident)),
            syn::UseTree::Rename(rename) => self.add(with(&rename.ident)),
            syn::UseTree::Glob(_) => self.add(prefix.to_vec()),
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

#[test]
fn a_wrong_arrow_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("lib.rs", "pub mod model; pub mod store;"),
        ("model.rs", "use crate::store::Store;"),
        (
            "store/mod.rs",
            "use super::format::Format; mod inner { use super::super::source::Source; } use self::fs::Fs;",
        ),
        ("engine/format.rs", "use crate::pipeline::run;"),
        ("kube.rs", "use vitrine_engine::pipeline::run; use crate::agent::run;"),
        ("store/fs.rs", "fn f() { crate::model::g(); super::super::pipeline::run(); kube::Client::new(); }"),
    ] {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let wrong: Vec<_> = against_the_arrows(folder.path())
        .into_iter()
        .map(|line| line.rsplit_once(": ").unwrap().1.to_owned())
        .collect();
    assert_eq!(
        wrong,
        ["format → pipeline", "kube → agent", "model → store", "store → pipeline", "store → format", "store → source"]
    );
    assert_eq!(kubernetes_in_the_engine(folder.path()).len(), 1);
}

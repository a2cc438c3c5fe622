//! Holds the documents against the code: every reason and every rule stands in `docs/troubleshooting.md`, nothing stands there that is
//! not in the code, and every block of commands in `README.md`, `docs/` and `docs/runbooks/` is run by some test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use syn::{Expr, ExprLit, Item, Lit};
use vitrine_engine::model::Rule;

use super::{imports::rust_files, root};

/// How far apart two parts of one message may be, in bytes.
const APART: usize = 160;
/// The fewest characters by which a test can name a block.
const FEWEST: usize = 8;

/// Blocks that no test names by the words that they begin with: what a verb takes or prints, or what another test does in its own words. Each
/// with the document, those words, the file that does it, and what of that file proves that it is there.
#[rustfmt::skip]
const OTHERWISE: [(&str, &str, &str, &str); 24] = [
    ("README.md", "make demo", "tests/demo/run.rs", "\"--no-print-directory\", \"demo\""),
    ("docs/benchmarks.md", "make bench", "Makefile", "\nbench:"),
    ("docs/benchmarks.md", "cargo test -p vitrine --test e2e -- --nocapture uninstalling", "tests/e2e/life.rs", "fn uninstalling_"),
    ("docs/cli.md", "vitrine inspect IMAGE", "tests/cli/inspect.rs", "fn good_images_are_accepted_as_what_they_are("),
    ("docs/cli.md", "$ vitrine inspect suspicious.qcow2", "tests/cli/inspect.rs", "fn reasons_tell_rule_field_value_and_what_to_do("),
    ("docs/cli.md", "vitrine convert SOURCE", "tests/cli/convert.rs", "fn every_variant_becomes_the_same_sparse_raw("),
    ("docs/cli.md", "vitrine convert disk.qcow2 -", "tests/cli/pipe.rs", "fn an_image_goes_into_a_pipe_as_it_does_into_a_file("),
    ("docs/cli.md", "vitrine import SOURCE", "tests/cli/import.rs", "fn a_url_becomes_a_verified_object("),
    ("docs/cli.md", "vitrine checksum IMAGE", "tests/cli/checksum.rs", "fn the_lines_are_those_of_coreutils("),
    ("docs/cli.md", "vitrine clone OBJECT", "tests/cli/clone.rs", "fn keys_come_from_files("),
    ("docs/cli.md", "$ vitrine clone rbd", "tests/cli/clone.rs", "fn a_clone_has_the_bytes_is_listed_and_holds_its_object("),
    ("docs/cli.md", "vitrine crds [", "tests/cli/help.rs", "fn the_definitions_are_printed("),
    ("docs/cli.md", "vitrine crds --format markdown", "tests/cli/help.rs", "fn the_reference_is_written_a_file_for_each_kind("),
    ("docs/kubectl-vitrine.md", "make build", "Makefile", "\nbuild:"),
    ("docs/kubectl-vitrine.md", "kubectl create rolebinding team-forwards", "tests/e2e/plugin.rs", "kubectl create rolebinding team-forwards --role vitrine-forward"),
    ("docs/kubectl-vitrine.md", "kubectl vitrine image upload FILE", "tests/cluster/plugin/transfers.rs", "fn an_administrator_with_a_certificate_sends_and_fetches("),
    ("docs/kubectl-vitrine.md", "zstd -dc golden.raw.zst", "tests/cluster/plugin/transfers.rs", "\"upload\", \"-\", \"piped\""),
    ("docs/kubectl-vitrine.md", "kubectl vitrine image download NAME", "tests/cluster/plugin/transfers.rs", "fn an_administrator_with_a_certificate_sends_and_fetches("),
    ("docs/kubectl-vitrine.md", "kubectl vitrine image create NAME", "tests/cluster/plugin/images.rs", "fn an_image_is_made_looked_at_changed_and_removed("),
    ("docs/kubectl-vitrine.md", "kubectl vitrine store list", "tests/cluster/plugin/stores.rs", "fn stores_are_listed_shown_and_probed_at_once("),
    ("docs/kubectl-vitrine.md", "kubectl vitrine task list", "tests/cluster/plugin/stores.rs", "fn tasks_are_listed_while_they_run("),
    ("docs/kubectl-vitrine.md", "kubectl vitrine doctor", "tests/cluster/plugin/doctor.rs", "fn a_healthy_site_is_told_from_broken_ones("),
    ("docs/kubectl-vitrine.md", "kubectl vitrine version", "tests/cluster/plugin/stores.rs", "\"version\", \"-o\", \"json\""),
    ("docs/kubectl-vitrine.md", "source <(kubectl-vitrine completion", "tests/cli/help.rs", "fn scripts_for_shells_are_scripts("),
];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn troubleshooting() -> String {
    read("docs/troubleshooting.md")
}

/// What the rows of the table below `heading` begin with, as it stands between the first two backticks.
fn rows(document: &str, heading: &str) -> BTreeSet<String> {
    let heading = format!("\n## {heading}\n");
    let (_, section) = document.split_once(&heading).unwrap_or_else(|| panic!("no heading{heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// The text constants of a file, with the first line of what is said of each; only those of its module `module`, if one is named.
fn constants(path: &str, module: Option<&str>) -> Vec<(String, String)> {
    let file = syn::parse_file(&read(path)).unwrap();
    let items = match module {
        None => file.items,
        Some(name) => {
            let mut modules = file.items.into_iter().filter_map(|item| match item {
                Item::Mod(found) if found.ident == name => found.content.map(|(_, items)| items),
                _ => None,
            });
            modules.next().unwrap_or_else(|| panic!("{path} has no module {name}"))
        }
    };
    items.into_iter().filter_map(constant).collect()
}

fn constant(item: Item) -> Option<(String, String)> {
    let Item::Const(item) = item else { return None };
    let Expr::Lit(ExprLit { lit: Lit::Str(value), .. }) = *item.expr else { return None };
    let said = item.attrs.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    });
    Some((value.value(), said.unwrap_or_default()))
}

fn values(path: &str, module: &str) -> BTreeSet<String> {
    constants(path, Some(module)).into_iter().map(|(value, _)| value).collect()
}

/// The names of an enum's variants.
fn variants(path: &str, name: &str) -> BTreeSet<String> {
    let file = syn::parse_file(&read(path)).unwrap();
    let mut enums = file.items.into_iter().filter_map(|item| match item {
        Item::Enum(found) if found.ident == name => Some(found),
        _ => None,
    });
    let found = enums.next().unwrap_or_else(|| panic!("{path} has no enum {name}"));
    found.variants.iter().map(|variant| variant.ident.to_string()).collect()
}

fn kebab(name: &str) -> String {
    let mut words = String::new();
    for (at, letter) in name.char_indices() {
        if at > 0 && letter.is_uppercase() {
            words.push('-');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

fn assert_same(what: &str, told: &BTreeSet<String>, known: &BTreeSet<String>) {
    let untold: Vec<_> = known.difference(told).collect();
    let unknown: Vec<_> = told.difference(known).collect();
    assert!(
        untold.is_empty() && unknown.is_empty(),
        "docs/troubleshooting.md, {what}: {untold:?} are in the code and not there, {unknown:?} are there and not in the code"
    );
}

fn source_files() -> Vec<PathBuf> {
    rust_files(&root().join("src"))
}

#[test]
fn every_reason_is_explained_and_no_other() {
    let (document, words) = (troubleshooting(), "src/api/condition.rs");
    assert_same("Conditions", &rows(&document, "Conditions"), &values(words, "types"));
    assert_same("Reasons of conditions", &rows(&document, "Reasons of conditions"), &values(words, "reasons"));
    assert_same("Reasons of events", &rows(&document, "Reasons of events"), &values(words, "events"));
    // The kinds of the engine's errors, and what operators say of attempts that no agent has ended.
    let mut failures = variants("src/engine/error.rs", "Kind");
    for file in source_files() {
        let path = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        if path.starts_with("src/controller/") {
            let reasons = constants(&path, None).into_iter().filter(|(_, said)| said.trim().starts_with("The reason"));
            failures.extend(reasons.map(|(value, _)| value));
        }
    }
    assert_same("Reasons of failures", &rows(&document, "Reasons of failures"), &failures);
}

#[test]
fn reasons_are_named_by_constants_and_not_spelt_out() {
    let spelt = [
        "Happening::normal(\"",
        "Happening::warning(\"",
        "Health::Hindered(\"",
        "Health::Stalled(\"",
        "Health::Deleting(\"",
    ];
    for file in source_files() {
        let text = fs::read_to_string(&file).unwrap();
        // What stands in a file's own tests is told to nobody.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let found = spelt.iter().find(|way| text.contains(**way));
        assert!(found.is_none(), "{}: {found:?}: give the reason a name in src/api/condition.rs", file.display());
    }
}

#[test]
fn every_rule_is_explained_and_no_other() {
    let told = rows(&troubleshooting(), "Rules");
    let known = variants("src/engine/model/verdict.rs", "Rule").iter().map(|name| kebab(name)).collect();
    assert_same("Rules", &told, &known);
    for name in told {
        let rule: Rule = serde_json::from_value(name.clone().into()).unwrap();
        assert_eq!(rule.to_string(), name);
    }
}

/// All of the code, with what is broken into lines in one piece.
fn code() -> String {
    let mut all = String::new();
    for file in source_files() {
        let text = fs::read_to_string(&file).unwrap();
        let mut pieces = text.split("\\\n");
        all.push_str(pieces.next().unwrap_or_default());
        pieces.for_each(|piece| all.push_str(piece.trim_start()));
    }
    all
}

/// Whether all `parts` stand in `code`, one near behind the other.
fn is_said(code: &str, parts: &[&str]) -> bool {
    let Some((first, rest)) = parts.split_first() else { return true };
    code.match_indices(first).any(|(at, _)| {
        let mut end = at + first.len();
        rest.iter().all(|part| {
            let near = code.get(end..).and_then(|behind| behind.find(part)).filter(|gap| *gap < APART);
            end += near.unwrap_or_default() + part.len();
            near.is_some()
        })
    })
}

#[test]
fn messages_that_are_explained_are_said() {
    let code = code();
    for message in rows(&troubleshooting(), "Messages") {
        let parts: Vec<_> = message.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
        assert!(is_said(&code, &parts), "docs/troubleshooting.md explains `{message}`, which nothing says");
    }
}

/// The first lines of the blocks of commands in a document, without their indentation.
fn blocks(document: &str) -> Vec<&str> {
    let before = std::iter::once("").chain(document.lines());
    let begins = before.zip(document.lines()).filter(|(before, _)| !before.starts_with("    "));
    begins.filter_map(|(_, line)| line.strip_prefix("    ")).collect()
}

/// Whether a test says in so many words that it runs the block which begins with `first`: by as many of these words as lead to no block
/// before it.
fn is_run(test: &str, document: &str, first: &str) -> bool {
    let ends = first.char_indices().map(|(at, _)| at).chain([first.len()]).filter(|end| *end >= FEWEST);
    ends.filter_map(|end| first.get(..end)).any(|words| {
        let leads_to =
            document.lines().filter_map(|line| line.strip_prefix("    ")).find(|line| line.starts_with(words));
        leads_to == Some(first) && test.contains(&format!("{words:?}"))
    })
}

/// The tests that read the document `name`.
fn readers(name: &str) -> Vec<String> {
    let tests = rust_files(&root().join("tests")).into_iter().map(|file| fs::read_to_string(file).unwrap());
    tests.filter(|text| text.contains(&format!("../{name}\")"))).collect()
}

/// What people read who are to type it, by its path.
fn documents() -> Vec<(String, String)> {
    let folders = ["docs", "docs/runbooks"].map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let files = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    files.chain([root().join("README.md")]).map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn every_block_of_commands_is_run_by_a_test() {
    let mut idle: Vec<_> = OTHERWISE.iter().collect();
    for (name, document) in documents() {
        let readers = readers(&name);
        for first in blocks(&document) {
            let otherwise = idle.iter().position(|(of, words, ..)| *of == name && first.starts_with(words));
            if let Some(at) = otherwise {
                let (_, _, file, proof) = idle.swap_remove(at);
                assert!(
                    read(file).contains(proof),
                    "{file} has no {proof:?}, which is said to do what {name} has: {first}"
                );
            } else {
                let run = readers.iter().any(|test| is_run(test, &document, first));
                assert!(run, "{name}: no test runs {first:?}: run it in one, as tests/cluster/documents.rs does");
            }
        }
    }
    assert!(idle.is_empty(), "no document has what these are said to do: {idle:?}");
}

#[test]
fn commands_of_runbooks_stand_in_blocks() {
    for (name, document) in documents().into_iter().filter(|(name, _)| name.starts_with("docs/runbooks/")) {
        assert!(!document.contains("`kubectl "), "{name}: a command within a line is run by no test: make it a block");
    }
}

#[test]
fn a_block_that_nobody_runs_is_seen() {
    let document =
        "text\n\n    helm get values\n    helm upgrade\n\n    kubectl get \"x\"\n    EOF\n\ntext\n    kubectl get y\n";
    assert_eq!(blocks(document), ["helm get values", "kubectl get \"x\"", "kubectl get y"]);
    assert!(is_run("run(\"helm get\")", document, "helm get values"));
    assert!(is_run("run(\"kubectl get \\\"x\")", document, "kubectl get \"x\""));
    // These words lead to an earlier block.
    assert!(!is_run("run(\"kubectl get\")", document, "kubectl get y"));
    assert!(!is_run("run(\"helm up\")", document, "helm get values"));
    assert!(
        is_said("it holds {key} already, with", &["it holds", "already"])
            && !is_said("already holds", &["holds", "already"])
    );
}

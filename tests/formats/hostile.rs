//! Files made to hurt, and odd ones that are good: each is refused by its rule, or accepted with its content.

use std::{fs, path::Path, process::Command};

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::disk::{Memory, content, refusals};

/// What the maker of hostile files writes about each of them.
fn cases(folder: &Path) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/images/hostile.py");
    let status = Command::new("python3").arg(&script).arg(folder).status().expect("python3 is needed");
    assert!(status.success(), "{} failed", script.display());
    let index = fs::read_to_string(folder.join("index.jsonl")).unwrap();
    index.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The rules by which the case may be refused; empty if it must be accepted.
fn expected(case: &Value) -> Vec<String> {
    let also = case["also"].as_array().unwrap().iter();
    std::iter::once(&case["rule"]).chain(also).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What becomes of the file at import: its content, or the rule.
fn import(bytes: &Bytes, streamed: bool) -> Result<Vec<u8>, String> {
    content(&mut Memory { bytes: bytes.clone(), streamed }, u64::MAX)
        .map_err(|error| error.violation().unwrap_or_else(|| panic!("no violation: {error}")).rule.to_string())
}

/// What is not as the index says, in words.
fn complaints(case: &Value, bytes: &Bytes) -> Vec<String> {
    let name = case["file"].as_str().unwrap();
    let rules = expected(case);
    let mut complaints = Vec::new();
    for streamed in [false, true] {
        match import(bytes, streamed) {
            Ok(disk) => {
                let size = case["virtualSize"].as_u64();
                let digest = Some(hex::encode(Sha256::digest(&disk)));
                if size != Some(disk.len() as u64) || digest.as_deref() != case["contentSha256"].as_str() {
                    complaints.push(format!("{name}: {} bytes, {digest:?}, expected {case}", disk.len()));
                }
            }
            Err(rule) if rules.contains(&rule) => {}
            Err(rule) => {
                complaints.push(format!("{name} (streamed: {streamed}): refused by {rule}, expected {rules:?}"));
            }
        }
    }
    let inspected = refusals(&mut Memory::new(bytes.clone()), None);
    let seen_in_tables = !rules.is_empty() && case["found"] == "tables";
    if inspected.is_empty() == seen_in_tables || inspected.iter().any(|rule| !rules.contains(rule)) {
        complaints.push(format!("{name}: inspection says {inspected:?}, expected {rules:?} in {}", case["found"]));
    }
    complaints
}

#[test]
fn every_hostile_file_is_refused_by_its_rule() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases = cases(folder.path());
    // Packed files are for the stage before this one.
    cases
        .retain(|case| ![".gz", ".xz", ".bz2", ".zst"].iter().any(|end| case["file"].as_str().unwrap().ends_with(end)));
    assert!(cases.len() > 80, "only {} cases: has the index changed?", cases.len());
    let read = |case: &Value| Bytes::from(fs::read(folder.path().join(case["file"].as_str().unwrap())).unwrap());
    let complaints: Vec<String> = cases.iter().flat_map(|case| complaints(case, &read(case))).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

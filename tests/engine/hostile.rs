//! Files made to do harm, through the whole engine: as a stream whose length nobody tells, and with it.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use vitrine_engine::{error::Kind, model::OutputFormat, store::Store as _};

use crate::support::{Bytestream, job, memory, run, stored};

fn cases(folder: &Path) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/images/hostile.py");
    let status = Command::new("python3").arg(script).arg(folder).status().unwrap();
    assert!(status.success(), "hostile.py: {status}");
    let index = fs::read_to_string(folder.join("index.jsonl")).unwrap();
    index.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn rules(case: &Value) -> Vec<String> {
    let also = case["also"].as_array().into_iter().flatten();
    also.chain([&case["rule"]]).filter_map(|rule| rule.as_str().map(str::to_owned)).collect()
}

/// What is not as the index says, in words.
async fn complaint(case: &Value, source: Bytestream) -> Option<String> {
    let name = case["file"].as_str().unwrap();
    let store = memory();
    let result = run(&job(source, vec![(store.clone(), OutputFormat::RAW)])).await;
    let refused = case["expect"] == "refused";
    match result {
        Ok(_) if refused => Some(format!("{name}: imported, expected {:?}", rules(case))),
        Ok(_) => {
            let digest = hex::encode(Sha256::digest(stored(store.as_ref()).await));
            let right = case["contentSha256"].as_str().is_none_or(|expected| expected == digest);
            (!right).then(|| format!("{name}: imported with other content than qemu's"))
        }
        Err(error) if !store.list().await.unwrap().is_empty() => {
            Some(format!("{name}: left something behind: {error}"))
        }
        Err(error) if !refused || error.kind() != Kind::Refused => Some(format!("{name}: {error}")),
        Err(error) => {
            let rule = error.violation().map(|violation| violation.rule.to_string()).unwrap_or_default();
            (!rules(case).contains(&rule)).then(|| format!("{name}: {error}, expected {:?}", rules(case)))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_file_is_refused_and_every_odd_one_imported() {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases(folder.path());
    assert!(cases.len() > 100, "only {} cases: has the index changed?", cases.len());
    let mut complaints = Vec::new();
    for case in &cases {
        let path = folder.path().join(case["file"].as_str().unwrap());
        for sized in [true, false] {
            let mut source = Bytestream::file(&path);
            source.sized = sized;
            complaints.extend(complaint(case, source).await);
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

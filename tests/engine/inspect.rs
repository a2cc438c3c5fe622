//! Inspection of sources that have to be read to their end.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::Kind,
    model::{Limits, Verdict},
    pipeline::{InspectJob, inspect},
};
use vitrine_harness::qemu::debian_disk;

use crate::support::Bytestream;

fn job(max_spill: u64) -> InspectJob {
    let source = Arc::new(Bytestream::file(&debian_disk().unwrap().join("zlib.qcow2")));
    let limits = Limits { max_spill, ..Limits::default() };
    InspectJob {
        source,
        disk_format: None,
        container_format: None,
        container_disk: None,
        limits,
        scratch: std::env::temp_dir(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spill_file_is_no_verdict() {
    let cancel = CancellationToken::new();
    let error = inspect(job(1 << 20), &cancel).await.unwrap_err();
    assert!(error.kind() == Kind::NoSpace && error.to_string().contains("could not be told"), "{error}");
    assert_eq!(inspect(job(1 << 30), &cancel).await.unwrap().verdict, Verdict::Accepted);
}

//! The recorder behind the macros of the crate `metrics`.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

/// Upper bounds of the buckets of all durations, in seconds: from the answer of a disk to the import of a large image over a slow line.
const SECONDS: [f64; 16] =
    [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 7200.0];
/// A gauge that nobody has set for so long is not shown any more: it is of a store that is gone, or of a time of leading that is over. A
/// few times the longest interval at which gauges are set.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(15);
/// How often histograms are emptied into their buckets, so that what is not scraped takes no memory.
const UPKEEP: Duration = Duration::from_secs(10);

/// Begins recording. Must be called within a runtime, and once.
///
/// # Errors
/// If recording has begun already.
pub(super) fn record() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .idle_timeout(MetricKindMask::GAUGE, Some(FORGOTTEN_AFTER))
        .install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
            metrics::gauge!("vitrine_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        }
    });
    Ok(handle)
}

//! Whether a pool takes writes, and how much room it has.

use std::sync::Arc;

use serde::Deserialize;

use super::{
    super::Capacity,
    ffi::{Errno, Pool},
    layout::PROBE,
    place::Place,
};
use crate::error::Result;

/// Makes and removes a small RADOS object, in the data pool too: that takes capabilities, OSDs that answer, and room.
pub(super) fn probe(place: &Arc<Place>) -> Result<()> {
    let failed = |errno| place.error("writing a probe", errno);
    for pool in [place.pool(), place.data_pool()] {
        probe_pool(pool).map_err(failed)?;
    }
    Ok(())
}

/// Two that probe at once are in each other's way only in that one removes the other's object.
fn probe_pool(pool: &Pool) -> std::result::Result<(), Errno> {
    pool.make(PROBE)?;
    match pool.remove_object(PROBE) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The answer to `df detail`, as far as it matters.
#[derive(Deserialize)]
struct Df {
    pools: Vec<DfPool>,
}

#[derive(Deserialize)]
struct DfPool {
    name: String,
    stats: DfStats,
}

#[derive(Deserialize)]
struct DfStats {
    /// Bytes of data, each counted once.
    #[serde(default)]
    stored: u64,
    /// Bytes of data that still fit.
    #[serde(default)]
    max_avail: u64,
    /// 0 for none.
    #[serde(default)]
    quota_bytes: u64,
}

/// Room for data in the pool; where the monitors do not tell, that of the cluster; `None` where there are no statistics.
pub(super) fn capacity(place: &Arc<Place>) -> Result<Option<Capacity>> {
    let failed = |errno| place.error("asking the monitors for the room", errno);
    let known = match place.cluster().ask(r#"{"prefix": "df", "detail": "detail", "format": "json"}"#) {
        Ok(answer) => of_pool(&answer, place.data_pool_name()),
        // Whoever is away does not answer the next question either, and asking would take as long again.
        Err(Errno::TIMEDOUT) => return Err(failed(Errno::TIMEDOUT)),
        Err(_) => None,
    };
    let found = if let Some(capacity) = known {
        capacity
    } else {
        let (total, available) = place.cluster().room().map_err(failed)?;
        Capacity { total, available }
    };
    Ok(Some(found).filter(|capacity| capacity.total > 0))
}

fn of_pool(answer: &[u8], pool: &str) -> Option<Capacity> {
    let df: Df = serde_json::from_slice(answer).ok()?;
    let DfStats { stored, max_avail, quota_bytes } = df.pools.into_iter().find(|found| found.name == pool)?.stats;
    let total = stored.saturating_add(max_avail);
    let capacity = if quota_bytes > 0 && quota_bytes < total {
        Capacity { total: quota_bytes, available: quota_bytes.saturating_sub(stored).min(max_avail) }
    } else {
        Capacity { total, available: max_avail }
    };
    Some(capacity).filter(|capacity| capacity.total > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn df(stats: &str) -> Option<Capacity> {
        let answer = format!(r#"{{"stats": {{}}, "pools": [{{"name": "a", "id": 1, "stats": {stats}}}]}}"#);
        of_pool(answer.as_bytes(), "a")
    }

    #[test]
    fn a_quota_is_the_pools_size() {
        let capacity = |total, available| Some(Capacity { total, available });
        assert_eq!(df(r#"{"stored": 10, "max_avail": 90, "quota_bytes": 0}"#), capacity(100, 90));
        assert_eq!(df(r#"{"stored": 10, "max_avail": 90, "quota_bytes": 30}"#), capacity(30, 20));
        assert_eq!(df(r#"{"stored": 40, "max_avail": 90, "quota_bytes": 30}"#), capacity(30, 0));
        assert_eq!(df(r#"{"stored": 0, "max_avail": 0}"#), None);
        assert_eq!(of_pool(b"{}", "a"), None);
    }
}

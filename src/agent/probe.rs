//! Asks stores how they are, each by itself and never twice at once: one that hangs holds up nobody, and takes one thread.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::ObjectKey,
    store::{Capacity, Store},
};

use super::{
    failure, metrics,
    rate::signed,
    stores::{Place, Stores},
};
use crate::api::{Backend, StoreReport};

/// How long a store may take to answer a probe before it counts as not ready. Local disks answer in milliseconds; a network file
/// system whose server is away never does.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest message of a report, in characters: the bound in the definition of NodeCache.
const MAX_MESSAGE: usize = 1024;

/// What is probed of a store.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The ImageStore's name.
    pub name: String,
    /// Its uid.
    pub uid: Option<String>,
    /// The generation of its spec.
    pub generation: i64,
    /// Its back end.
    pub backend: Backend,
    /// Whether nothing is written there, whoever else may.
    pub read_only: bool,
    /// Which store must be found there, as far as is known.
    pub id: Option<String>,
    /// Whether this node is to list what it holds.
    pub lists: bool,
    /// By which request of a person, if there was one.
    pub asked: Option<String>,
}

/// A store that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Which it is.
    pub id: Option<String>,
    /// Its room, where it tells.
    pub capacity: Option<Capacity>,
    /// Why it takes nothing though it can be read.
    pub closed: Option<Closed>,
}

/// Why a store that can be read takes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// There is no room, as the message says.
    Full(String),
    /// Whoever asks may not write, as the message says.
    ReadOnly(String),
}

/// The probes under way.
#[derive(Default)]
pub struct Probes {
    /// What has not come to an end, also long after its deadline.
    asking: BTreeMap<String, AbortHandle>,
    answers: JoinSet<StoreReport>,
}

impl Probes {
    /// Has `ask` answered for `subject`, unless an earlier question about the same store is still open.
    pub fn begin(&mut self, subject: Subject, ask: impl Future<Output = Result<Look>> + Send + 'static) {
        if self.asking.get(&subject.name).is_some_and(|asking| !asking.is_finished()) {
            return;
        }
        let (asking, began) = (tokio::spawn(ask), Instant::now());
        self.asking.insert(subject.name.clone(), asking.abort_handle());
        self.answers.spawn(async move {
            // What is not waited for any longer goes on: a thread in a system call cannot be stopped.
            let answer = match tokio::time::timeout(DEADLINE, asking).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => Err(Error::with_source(Kind::Internal, "a probe broke off", error)),
                Err(_) => Err(late(&subject)),
            };
            let report = report(subject, answer);
            metrics::probed(&report, began.elapsed());
            report
        });
    }

    /// The next answer; nothing if none is waited for.
    pub async fn next(&mut self) -> Option<StoreReport> {
        // A task that neither panics nor is aborted always gives its report.
        self.answers.join_next().await?.ok()
    }

    /// Whether all that was asked for is answered, or late.
    pub fn is_idle(&self) -> bool {
        self.answers.is_empty()
    }
}

fn late(subject: &Subject) -> Error {
    let (name, seconds) = (&subject.name, DEADLINE.as_secs());
    let message = match &subject.backend.rbd {
        Some(rbd) => format!(
            "store {name}, pool {}: Ceph has not answered for {seconds} s: are the monitors and OSDs up (`ceph -s`), and reachable from \
             here?",
            rbd.pool
        ),
        None => format!("store {name} has not answered for {seconds} s: is its volume mounted?"),
    };
    Error::new(Kind::Unavailable, message)
}

/// Opens the store and looks at it.
///
/// # Errors
/// Why it cannot be read.
pub async fn look(stores: Arc<Stores>, subject: Subject) -> Result<Look> {
    let Subject { name, backend, id, read_only, .. } = &subject;
    let place = Place { name, backend, id: id.as_deref() };
    let looked = look_at(&*stores.open(place).await?, *read_only).await;
    if looked.as_ref().map_or_else(is_of_the_connection, |look| matches!(look.closed, Some(Closed::ReadOnly(_)))) {
        stores.let_go(name);
    }
    looked
}

/// Whether another connection may fare better: rights and pools are found out when it is made.
fn is_of_the_connection(error: &Error) -> bool {
    matches!(error.kind(), Kind::Denied | Kind::NotFound | Kind::Unavailable)
}

/// A store without room is read as well as ever, and only removing images makes room again. So is one whose user may only read, or that is
/// another cluster's.
async fn look_at(store: &dyn Store, read_only: bool) -> Result<Look> {
    let taken = match store.probe().await {
        Ok(()) if !read_only => store.claim().await,
        answer => answer,
    };
    let closed = match taken {
        Err(error) if error.kind() == Kind::NoSpace => Some(Closed::Full(error.to_string())),
        Err(error) if error.kind() == Kind::Denied && can_read(store).await => {
            Some(Closed::ReadOnly(error.to_string()))
        }
        answer => answer.map(|()| None)?,
    };
    let capacity = store.capacity().await?;
    Ok(Look { id: store.id(), capacity, closed })
}

/// Whether a store can tell that it does not hold what nobody has ever put there.
async fn can_read(store: &dyn Store) -> bool {
    let Some(nothing) = ObjectKey::new("probe", 0) else { return false };
    matches!(store.stat(&nothing).await, Err(error) if error.kind() == Kind::NotFound)
}

fn report(subject: Subject, answer: Result<Look>) -> StoreReport {
    let Subject { name, uid, generation, id, asked, .. } = subject;
    let (ready, message, look) = match answer {
        Ok(look) => {
            let message = match &look.closed {
                Some(Closed::Full(message) | Closed::ReadOnly(message)) => message.clone(),
                None => String::new(),
            };
            (true, message, look)
        }
        Err(error) => (false, error.to_string(), Look::default()),
    };
    let is_full = matches!(look.closed, Some(Closed::Full(_)));
    StoreReport {
        name,
        observed_generation: generation,
        uid,
        id: look.id.or(id),
        ready,
        read_only: matches!(look.closed, Some(Closed::ReadOnly(_))),
        message: failure::shorten(&message, MAX_MESSAGE),
        capacity: look.capacity.map(|capacity| signed(capacity.total)),
        // Also where bytes are left and something else has run out, and of a store that does not tell its room.
        available: if is_full { Some(0) } else { look.capacity.map(|capacity| signed(capacity.available)) },
        probed_at: Time(Timestamp::now()),
        asked,
        listing: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use vitrine_engine::store::{
        fault::{Faults, FaultyStore},
        memory::MemoryStore,
    };

    use super::*;
    use crate::api::RbdBackend;

    fn subject() -> Subject {
        let id = Some("0a".repeat(16));
        Subject {
            name: "s".to_owned(),
            uid: Some("u".to_owned()),
            generation: 3,
            backend: Backend::default(),
            read_only: false,
            id,
            lists: false,
            asked: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_asked_once() {
        let (calls, mut probes) = (Arc::new(AtomicUsize::new(0)), Probes::default());
        for _ in 0..5 {
            let calls = calls.clone();
            probes.begin(subject(), async move {
                calls.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            });
            while let Some(report) = probes.next().await {
                assert!(!report.ready && report.message.contains("has not answered for 10 s"), "{report:?}");
                assert_eq!((report.id, report.uid), (subject().id, subject().uid), "what is known stays");
            }
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let rbd = RbdBackend { pool: "images".to_owned(), ..RbdBackend::default() };
        let pool = Subject { backend: Backend { rbd: Some(rbd), ..Backend::default() }, ..subject() };
        let told = late(&pool).to_string();
        assert!(["store s", "pool images", "ceph -s"].iter().all(|words| told.contains(words)), "{told}");
        // Another store is not held up.
        probes.begin(Subject { name: "t".to_owned(), ..subject() }, async { Ok(Look::default()) });
        assert!(probes.next().await.unwrap().ready && probes.is_idle());
    }

    #[tokio::test]
    async fn a_full_store_can_be_read_and_has_no_room() {
        let memory = Arc::new(MemoryStore::with_capacity("s", 1 << 20));
        let probed = |kind| FaultyStore::new(memory.clone(), Faults { probe: Some(kind), ..Faults::default() });
        let report = report(subject(), look_at(&probed(Kind::NoSpace), false).await);
        assert!(report.ready && !report.message.is_empty(), "{report:?}");
        assert_eq!((report.capacity, report.available), (Some(1 << 20), Some(0)));
        let untold = Look { closed: Some(Closed::Full("quota".to_owned())), ..Look::default() };
        let report = super::report(subject(), Ok(untold));
        assert_eq!((report.capacity, report.available), (None, Some(0)), "a bucket does not tell its size");
        assert_eq!(look_at(&probed(Kind::Io), false).await.unwrap_err().kind(), Kind::Io);
        let report = super::report(subject(), look_at(&probed(Kind::Denied), false).await);
        assert!(report.ready && report.read_only && !report.message.is_empty(), "{report:?}");
        assert_eq!(report.available, Some(1 << 20), "there is room for others");
        let neither = Faults { probe: Some(Kind::Denied), stat: Some(Kind::Denied), ..Faults::default() };
        assert_eq!(look_at(&FaultyStore::new(memory.clone(), neither), false).await.unwrap_err().kind(), Kind::Denied);
        assert_eq!(look_at(&*memory, false).await.unwrap().capacity.unwrap().available, 1 << 20);
    }
}

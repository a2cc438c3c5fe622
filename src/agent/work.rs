//! One task, from taking it up to its final status.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, field::Empty, info_span};
use vitrine_engine::{
    error::{Error, Kind, Result},
    pipeline,
};

use super::{
    copy, failure, import, metrics,
    permit::{Halt, TaskPermit},
    queue::Stop,
    rate::Meter,
    remove,
    report::{Outcome, Reporter, Standing, Written},
    workplace::Workplace,
};
use crate::api::{Action, ImageTask, ImageTaskSpec};

/// The least time between two reports of progress: the contract allows one write in 2 s, and the clocks of others are not ours.
const REPORT_INTERVAL: Duration = Duration::from_millis(2_100);
/// The time between two tries to report a failure that the API server refuses: somebody has to change something for it to work.
const INSIST_INTERVAL: Duration = Duration::from_secs(30);

/// What becomes of an import in stores that other nodes write to as well.
const SHARED: &str = "in shared stores, removing it is left to the operator";

/// Carries out the task that `reporter` names, or brings it to its end if it is not wanted any more. When it returns, nothing of
/// the task runs here, and its status is final or (`halt` said so, or it is gone) nobody's business here.
pub async fn carry_out(place: &Workplace, reporter: Reporter, halt: Halt) {
    let mut pulse = place.pulse.clone();
    tokio::select! {
        () = pulse.held() => {}
        () = place.end.cancelled() => return,
    }
    match reporter.standing(&place.end).await {
        Some(Standing::Wanted(task)) => {
            let span = span(&task);
            work(place, &reporter, &halt, &task).instrument(span).await;
        }
        Some(Standing::Cancelled(task)) => {
            let span = span(&task);
            give_up(place, &reporter, &task.spec).instrument(span).await;
        }
        Some(Standing::Ended | Standing::Gone) | None => {}
    }
}

fn span(task: &ImageTask) -> Span {
    let spec = &task.spec;
    info_span!(
        "task",
        action = ?spec.action,
        task = task.metadata.name,
        image = format!("{}/{}", spec.image.namespace, spec.image.name),
        revision = spec.revision,
        attempt = spec.attempt,
        // What a trace calls a failure; known at the end.
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

async fn work(place: &Workplace, reporter: &Reporter, halt: &Halt, task: &ImageTask) {
    if halt.why().is_some_and(|why| why != Stop::Cancelled) {
        return;
    }
    match reporter.take_up(task, &place.id, &place.end).await {
        Some(Written::Yes) => {}
        Some(Written::Invalid(why)) => return insist(place, reporter, "nothing was begun", &why).await,
        Some(Written::Gone) | None => return,
    }
    // Said here, too: who reads a task's log sees what the lines say and not what they are about.
    tracing::info!(action = ?task.spec.action, "begun");
    metrics::begun(task.spec.action, task.spec.attempt);
    let began = Instant::now();
    let act = AssertUnwindSafe(act(place, reporter, halt, &task.spec)).catch_unwind();
    let result = act.await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Internal, "the agent met a fault of its own (see its log); report it with the log"))
    });
    let outcome = match (result, halt.why()) {
        (Err(_) | Ok(Outcome::Imported(..) | Outcome::Failed(..)), Some(Stop::Cancelled)) => {
            return give_up(place, reporter, &task.spec).await;
        }
        (Err(error), Some(why @ (Stop::Gone | Stop::Shutdown))) => {
            return tracing::info!(?why, %error, "stopped");
        }
        (Err(error), None) => fail(place, &task.spec, &error).await,
        (Ok(outcome), _) => outcome,
    };
    if conclude(place, reporter, &task.spec, &outcome).await {
        metrics::ended(task.spec.action, &outcome, began.elapsed());
        tell(&outcome, began.elapsed());
    }
}

/// Writes how a task ended; true if it is written. A status that is found invalid would be so for ever: then the task has failed.
async fn conclude(place: &Workplace, reporter: &Reporter, spec: &ImageTaskSpec, outcome: &Outcome) -> bool {
    let why = match reporter.finish(outcome, &place.end).await {
        Some(Written::Yes) => return true,
        Some(Written::Invalid(why)) => why,
        Some(Written::Gone) | None => return false,
    };
    let done = match outcome {
        Outcome::Imported(..) => match remove::clear_up(place, spec).await {
            Ok(()) if remove::is_shared(spec) => {
                format!("the image was imported and has been removed again from stores of this node; {SHARED}")
            }
            Ok(()) => "the image was imported and has been removed again".to_owned(),
            Err(left) => format!("the image was imported and could not be removed again ({left})"),
        },
        Outcome::Removed => "the image was removed".to_owned(),
        Outcome::Verified(_) => "the image was verified".to_owned(),
        Outcome::Failed(failure, _) => format!("the task failed ({})", failure.reason),
    };
    insist(place, reporter, &done, &why).await;
    false
}

/// Writes that a task failed whose status the API server finds invalid, until it is written. There is nothing else to say.
async fn insist(place: &Workplace, reporter: &Reporter, done: &str, why: &str) {
    tracing::error!(error = why, "{done}, but the task's status is refused; it is reported as failed");
    let outcome = Outcome::Failed(failure::unwritable(done, why), Vec::new());
    while let Some(Written::Invalid(error)) = reporter.finish(&outcome, &place.end).await {
        tracing::error!(error, "not even that the task failed can be reported; trying again");
        tokio::select! {
            () = tokio::time::sleep(INSIST_INTERVAL) => {}
            () = place.end.cancelled() => {}
        }
    }
}

fn tell(outcome: &Outcome, took: Duration) {
    let took = took.as_secs_f64();
    match outcome {
        Outcome::Imported(result, _) => {
            tracing::info!(took, size = result.content.size, content = result.content.content_digest, "imported");
        }
        Outcome::Removed => tracing::info!(took, "removed"),
        Outcome::Verified(faults) => tracing::info!(took, ?faults, "verified"),
        Outcome::Failed(failure, _) => {
            tracing::warn!(
                took,
                reason = failure.reason,
                retryable = failure.retryable,
                error = failure.message,
                "failed"
            );
            Span::current().record("otel.status_code", "ERROR");
            Span::current().record("otel.status_description", failure.reason.as_str());
        }
    }
}

async fn act(place: &Workplace, reporter: &Reporter, halt: &Halt, spec: &ImageTaskSpec) -> Result<Outcome> {
    match spec.action {
        Action::Import => run_import(place, reporter, halt, spec).await,
        Action::Copy => run_copy(place, reporter, halt, spec).await,
        Action::Verify => run_verification(place, reporter, halt, spec).await,
        Action::Delete => {
            let permit = permit(place, reporter, halt);
            remove::remove(place, spec, &permit, halt.token()).await.map(|()| Outcome::Removed)
        }
    }
}

fn permit(place: &Workplace, reporter: &Reporter, halt: &Halt) -> TaskPermit {
    TaskPermit { reporter: reporter.clone(), pulse: place.pulse.clone(), halt: halt.clone() }
}

async fn run_import(place: &Workplace, reporter: &Reporter, halt: &Halt, spec: &ImageTaskSpec) -> Result<Outcome> {
    let permit = Arc::new(permit(place, reporter, halt));
    let import::Prepared { job, closed, expected } = import::prepare(place, spec, permit, halt.token()).await?;
    let imported =
        reporting(reporter, spec.action, async |progress| pipeline::import(&job, progress, halt.token()).await).await?;
    if let Some(expected) = expected {
        expected.conclude(import::end(&imported));
    }
    let imported = imported?;
    Ok(Outcome::Imported(Box::new(import::result(imported, closed)), Vec::new()))
}

async fn run_copy(place: &Workplace, reporter: &Reporter, halt: &Halt, spec: &ImageTaskSpec) -> Result<Outcome> {
    let permit = Arc::new(permit(place, reporter, halt));
    let copy::Prepared { job, closed, mut faults } = copy::prepare(place, spec, permit, halt.token()).await?;
    let copied =
        reporting(reporter, spec.action, async |progress| pipeline::copy(&job, progress, halt.token()).await).await?;
    faults.extend(copied.faults.into_iter().map(copy::fault));
    Ok(match copied.result {
        Ok(imported) => Outcome::Imported(Box::new(import::result(imported, closed)), faults),
        Err(error) if halt.why().is_some() => return Err(error),
        Err(error) => Outcome::Failed(failure::describe(&error), faults),
    })
}

async fn run_verification(
    place: &Workplace,
    reporter: &Reporter,
    halt: &Halt,
    spec: &ImageTaskSpec,
) -> Result<Outcome> {
    let job = copy::prepare_verification(place, spec, halt.token()).await?;
    let verdict =
        reporting(reporter, spec.action, async |progress| pipeline::verify(&job, progress, halt.token()).await)
            .await??;
    Ok(Outcome::Verified(match verdict {
        pipeline::Verdict::Sound => Vec::new(),
        pipeline::Verdict::Rotten(message) => vec![copy::rot(job.store.name(), &message)],
    }))
}

/// Does the engine's part of a task, and reports how far it is meanwhile.
///
/// # Errors
/// If the engine breaks down.
async fn reporting<T>(
    reporter: &Reporter,
    action: Action,
    work: impl AsyncFnOnce(&Arc<pipeline::Progress>) -> T,
) -> Result<T> {
    let progress = Arc::new(pipeline::Progress::default());
    let stop = CancellationToken::new();
    let flow = metrics::Flow::new(action);
    let reports = report(reporter.clone(), progress.clone(), flow, stop.clone());
    let reports = tokio::spawn(reports.instrument(Span::current()));
    let done = AssertUnwindSafe(work(&progress)).catch_unwind().await;
    // Waited for: a report must not arrive after the final status. Only a panic makes this fail, and reports do not matter then.
    stop.cancel();
    let _ended = reports.await;
    done.map_err(|_| Error::new(Kind::Internal, "the engine met a fault of its own"))
}

/// Reports progress until `stop`: what changed since the last report, and not more often than the contract allows.
async fn report(
    reporter: Reporter,
    progress: Arc<pipeline::Progress>,
    mut flow: metrics::Flow,
    stop: CancellationToken,
) {
    let (began, mut meter, mut last) = (Instant::now(), Meter::default(), None);
    loop {
        tokio::select! {
            // Counted from the answer to the last one, so that a slow API server does not see two close together.
            () = tokio::time::sleep(REPORT_INTERVAL) => {}
            () = stop.cancelled() => return flow.end(&progress),
        }
        let snapshot = progress.snapshot();
        flow.count(&snapshot);
        let now = meter.measure(began.elapsed(), &snapshot);
        if last.as_ref() == Some(&now) {
            continue;
        }
        match reporter.progress(&now).await {
            Ok(()) => last = Some(now),
            Err(error) => tracing::warn!(%error, "reporting progress failed"),
        }
    }
}

/// The end of a task that is not wanted any more.
async fn give_up(place: &Workplace, reporter: &Reporter, spec: &ImageTaskSpec) {
    let mut message = if remove::is_shared(spec) {
        format!("cancelled: nothing of it was kept in stores of this node; {SHARED}")
    } else {
        "cancelled: nothing of it was kept".to_owned()
    };
    if let Err(error) = remove::clear_up(place, spec).await {
        message = format!("cancelled; what was written could not be removed: {error}");
    }
    let error = Error::new(Kind::Cancelled, message);
    if conclude(place, reporter, spec, &Outcome::Failed(failure::describe(&error), Vec::new())).await {
        tracing::info!(%error, "cancelled");
    }
}

/// The end of a task that failed: nothing of it may stay. A later attempt is never disturbed, though.
async fn fail(place: &Workplace, spec: &ImageTaskSpec, error: &Error) -> Outcome {
    let mut failure = failure::describe(error);
    // The sinks removed what they wrote. Only what was published before another store failed is still there.
    let several = spec.targets().len() > 1;
    if several
        && error.kind() != Kind::Conflict
        && let Err(left) = remove::clear_up(place, spec).await
    {
        let message = format!("{error}; and what was written could not be removed: {left}");
        failure.message = failure::shorten(&message, failure::MAX_MESSAGE);
    }
    Outcome::Failed(failure, Vec::new())
}

//! What every verb that moves bytes needs around it: a runtime, interruption, messages and exit codes.

use std::{future::Future, num::NonZero, process::ExitCode, sync::OnceLock, time::Duration};

use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use vitrine_engine::error::{Error, Kind, Result};

use super::program;

/// The image is refused.
pub const REFUSED: u8 = 3;
/// Ended by Ctrl-C or SIGTERM: 128 and the number of SIGINT, as shells count.
const INTERRUPTED: u8 = 130;
/// A read that hangs (a terminal, a dead network file system) must not keep the program from ending.
const PATIENCE: Duration = Duration::from_millis(500);

/// Runs a verb to its end and says what went wrong.
pub fn run(verb: &str, work: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{} {verb}: starting threads: {error}", program::name());
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(PATIENCE);
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {verb}: {error}", program::name());
            code_of(error.kind())
        }
    }
}

fn code_of(kind: Kind) -> ExitCode {
    match kind {
        Kind::Refused => ExitCode::from(REFUSED),
        Kind::Cancelled => ExitCode::from(INTERRUPTED),
        Kind::InvalidInput
        | Kind::Denied
        | Kind::NotFound
        | Kind::AlreadyExists
        | Kind::Unavailable
        | Kind::Changed
        | Kind::NoSpace
        | Kind::Io
        | Kind::Conflict
        | Kind::InUse
        | Kind::NeedsSpill
        | Kind::Internal => ExitCode::FAILURE,
    }
}

/// A token that Ctrl-C and SIGTERM cancel, so that unfinished files are removed on the way out. A second signal ends at once.
///
/// # Errors
/// If signals cannot be listened to.
pub fn interruption() -> Result<CancellationToken> {
    static TOKEN: OnceLock<CancellationToken> = OnceLock::new();
    if let Some(token) = TOKEN.get() {
        return Ok(token.clone());
    }
    let listen = |kind| signal(kind).map_err(|e| Error::io("listening for signals", e));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let token = TOKEN.get_or_init(CancellationToken::new).clone();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if last {
                std::process::exit(i32::from(INTERRUPTED));
            }
            cancelled.cancel();
        }
    });
    Ok(token)
}

/// What `work` comes to, unless Ctrl-C comes first.
///
/// # Errors
/// `Cancelled` then.
pub async fn until_interrupted<T>(work: impl Future<Output = T>) -> Result<T> {
    let done = interruption()?.run_until_cancelled(work).await;
    done.ok_or_else(|| Error::new(Kind::Cancelled, "interrupted"))
}

/// Threads that unpack, hash and encode: one for each processor.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

//! Requests to the API server: each with a deadline, and told apart by what can be done about a failure.

use std::{future::Future, time::Duration};

use kube::Error as ClientError;
use tokio_util::sync::CancellationToken;

/// How long one request may take. The API server itself gives up a request after 60 s; one that took a fifth of that on a
/// healthy one is rare, and asking again is cheap.
pub const DEADLINE: Duration = Duration::from_secs(12);
/// The first pause before a request is made again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often an object that the API server finds invalid is sent before that is believed: for 8 to 16 s, in which new definitions and
/// policies reach all API servers.
const INVALID_TRIES: u32 = 7;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The object is not there.
    #[error("not found")]
    NotFound,
    /// It is another object than meant, or it changed meanwhile.
    #[error("the object was changed or replaced meanwhile")]
    Conflict,
    /// The API server refuses what was asked, now and later unless somebody changes something.
    #[error("refused by the API server: {0}")]
    Refused(#[source] ClientError),
    /// What was sent breaks a rule of its definition, or of an admission policy: it will be refused as long as it is as it is.
    #[error("refused by the API server: {0}")]
    Invalid(#[source] ClientError),
    /// It cannot be reached, or cannot answer now.
    #[error("the API server does not answer: {0}")]
    Unavailable(#[source] ClientError),
    /// It took too long.
    #[error("the API server did not answer within {} s", DEADLINE.as_secs())]
    Late,
}

impl From<ClientError> for RequestError {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Api(status) => status.code,
            _ => return Self::Unavailable(error),
        };
        match code {
            404 => Self::NotFound,
            409 => Self::Conflict,
            422 => Self::Invalid(error),
            400..=428 => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// Makes one request, with the deadline.
pub async fn once<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    tokio::time::timeout(DEADLINE, request).await.map_err(|_| RequestError::Late)?.map_err(RequestError::from)
}

/// Makes a request until it is answered with something else than a failure that may pass; `None` once `stop` is cancelled.
/// A refusal is tried again too: rights and policies reach the API server's caches after the objects they are about. Only what is found
/// invalid time and again is answered so.
pub async fn until_answered<T, F>(
    what: &str,
    stop: &CancellationToken,
    mut request: impl FnMut() -> F,
) -> Option<Result<T, RequestError>>
where
    F: Future<Output = kube::Result<T>>,
{
    let (mut pause, mut invalid) = (FIRST_PAUSE, 0_u32);
    loop {
        let answer = tokio::select! {
            answer = once(request()) => answer,
            () = stop.cancelled() => return None,
        };
        match answer {
            Err(RequestError::Invalid(error)) if invalid < INVALID_TRIES => {
                invalid = invalid.saturating_add(1);
                tracing::warn!(%error, "{what} was refused; trying again in {} ms", pause.as_millis());
            }
            Err(error @ (RequestError::Refused(_) | RequestError::Unavailable(_) | RequestError::Late)) => {
                tracing::warn!(%error, "{what} failed; trying again in {} ms", pause.as_millis());
            }
            answer => return Some(answer),
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = stop.cancelled() => return None,
        }
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// Between half of `pause` and all of it, so that a thousand agents that lost the API server at once do not return at once.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::core::Status;

    use super::*;

    fn answer(code: u16) -> ClientError {
        ClientError::Api(Box::new(Status { code, ..Status::default() }))
    }

    #[test]
    fn answers_are_told_apart_by_their_code() {
        let name =
            |code| format!("{:?}", RequestError::from(answer(code))).split('(').next().unwrap_or_default().to_owned();
        let table = [
            (404, "NotFound"),
            (409, "Conflict"),
            (400, "Refused"),
            (403, "Refused"),
            (422, "Invalid"),
            (429, "Unavailable"),
            (500, "Unavailable"),
            (503, "Unavailable"),
        ];
        for (code, expected) in table {
            assert_eq!(name(code), expected, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_and_the_rest_is_not() {
        for (first, calls) in [(503, 2), (403, 2), (404, 1), (409, 1)] {
            let count = AtomicUsize::new(0);
            let result = until_answered("a request", &CancellationToken::new(), || {
                let nth = count.fetch_add(1, Ordering::Relaxed);
                async move { if nth == 0 { Err(answer(first)) } else { Ok(()) } }
            })
            .await;
            assert!(result.is_some(), "{first}");
            assert_eq!(count.load(Ordering::Relaxed), calls, "{first}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_invalid_is_not_tried_for_ever() {
        let stop = CancellationToken::new();
        let result = until_answered("a request", &stop, || async { Err::<(), _>(answer(422)) });
        let result = tokio::time::timeout(Duration::from_mins(1), result).await.expect("an answer");
        assert!(matches!(result, Some(Err(RequestError::Invalid(_)))));
        let count = AtomicUsize::new(0);
        let result = until_answered("a request", &stop, || {
            let nth = count.fetch_add(1, Ordering::Relaxed);
            async move { if nth < 3 { Err(answer(422)) } else { Ok(()) } }
        });
        assert!(result.await.unwrap().is_ok(), "definitions may be on their way");
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_ends_the_trying() {
        let stop = CancellationToken::new();
        let stopped = tokio::spawn({
            let stop = stop.clone();
            async move { until_answered("a request", &stop, || async { Err::<(), _>(answer(503)) }).await.is_none() }
        });
        tokio::time::sleep(Duration::from_mins(1)).await;
        stop.cancel();
        assert!(stopped.await.unwrap());
    }
}

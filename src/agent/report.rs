//! Reads and writes one ImageTask: where it stands, and its status.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Error as ClientError, Resource as _,
    api::{Patch, PatchParams},
    core::Status,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    FIELD_MANAGER,
    request::{self, RequestError},
};
use crate::api::{ImageTask, ImportResult, Progress, StoreFault, TaskFailure, TaskPhase};

/// Where a task stands, by a read that is not from any cache.
#[derive(Debug)]
pub enum Standing {
    /// To be done.
    Wanted(Box<ImageTask>),
    /// Not wanted any more, and waiting to be told that it was stopped.
    Cancelled(Box<ImageTask>),
    /// Its status is final.
    Ended,
    /// It is not there any more.
    Gone,
}

/// How a task ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An import or a copy brought this, and this is what was found wrong with copies that were read.
    Imported(Box<ImportResult>, Vec<StoreFault>),
    /// A delete is done.
    Removed,
    /// A copy was read from end to end, and this is what was found wrong with it.
    Verified(Vec<StoreFault>),
    /// It failed, and this is what was found wrong with copies that were read.
    Failed(TaskFailure, Vec<StoreFault>),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is written.
    Yes,
    /// The task is gone.
    Gone,
    /// The API server finds it invalid, and says why.
    Invalid(String),
}

/// One task, by name and uid.
#[derive(Clone)]
pub struct Reporter {
    tasks: Api<ImageTask>,
    name: String,
    uid: String,
}

impl Reporter {
    /// The task `name` that has `uid`; one of the same name with another uid is not it.
    pub fn new(tasks: Api<ImageTask>, name: String, uid: String) -> Self {
        Self { tasks, name, uid }
    }

    /// Where it stands now. Waits for the API server; `None` once `stop` is cancelled.
    pub async fn standing(&self, stop: &CancellationToken) -> Option<Standing> {
        let answer = request::until_answered("reading the task", stop, || self.tasks.get_opt(&self.name)).await?;
        Some(match answer {
            Ok(Some(task)) if task.metadata.uid.as_deref() == Some(self.uid.as_str()) => stand(task),
            _ => Standing::Gone,
        })
    }

    /// Writes that agent `id` works on `task`. `None` once `stop` is cancelled.
    pub async fn take_up(&self, task: &ImageTask, id: &str, stop: &CancellationToken) -> Option<Written> {
        let started = task.status.as_ref().and_then(|status| status.started_at.clone()).unwrap_or_else(now);
        let status = json!({
            "phase": TaskPhase::Running,
            "agent": id,
            "startedAt": started,
            "observedGeneration": task.metadata.generation,
        });
        self.write("taking up the task", status, stop).await
    }

    /// Writes how far it is, once: the next report makes up for one that failed.
    pub async fn progress(&self, progress: &Progress) -> Result<(), RequestError> {
        // `null` removes what the last report had and this one has not.
        let Progress { stage, bytes_done, bytes_total, rate, eta_seconds } = progress;
        let status = json!({ "progress": {
            "stage": stage, "bytesDone": bytes_done, "bytesTotal": bytes_total, "rate": rate, "etaSeconds": eta_seconds,
        }});
        request::once(self.patch(&status)).await
    }

    /// Writes the end, until there is an answer. `None` once `stop` is cancelled.
    pub async fn finish(&self, outcome: &Outcome, stop: &CancellationToken) -> Option<Written> {
        let mut status = match outcome {
            Outcome::Imported(result, faults) => {
                json!({ "phase": TaskPhase::Succeeded, "result": result, "faults": faults })
            }
            Outcome::Removed => json!({ "phase": TaskPhase::Succeeded }),
            Outcome::Verified(faults) => json!({ "phase": TaskPhase::Succeeded, "faults": faults }),
            Outcome::Failed(failure, faults) => {
                json!({ "phase": TaskPhase::Failed, "failure": failure, "faults": faults })
            }
        };
        if let Some(status) = status.as_object_mut() {
            status.insert("finishedAt".to_owned(), json!(now()));
        }
        self.write("writing the task's end", status, stop).await
    }

    async fn write(&self, what: &str, status: Value, stop: &CancellationToken) -> Option<Written> {
        let answer = request::until_answered(what, stop, || self.patch_if_same(&status)).await?;
        Some(match answer {
            Ok(()) => Written::Yes,
            Err(error @ RequestError::Invalid(_)) => Written::Invalid(error.to_string()),
            Err(error) => {
                tracing::info!(%error, "{what}: the task is gone");
                Written::Gone
            }
        })
    }

    async fn patch(&self, status: &Value) -> kube::Result<()> {
        // With the uid in it, the API server refuses the patch if the name belongs to another task by now.
        let patch = json!({
            "apiVersion": ImageTask::api_version(&()),
            "kind": ImageTask::kind(&()),
            "metadata": { "uid": self.uid },
            "status": status,
        });
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.tasks.patch_status(&self.name, &parameters, &Patch::Merge(&patch)).await.map(drop)
    }

    /// As `patch`; but a refusal because the task was replaced is told like one because it is gone. The API server also answers with
    /// a conflict when others write the same task often enough: that passes.
    async fn patch_if_same(&self, status: &Value) -> kube::Result<()> {
        match self.patch(status).await {
            Err(ClientError::Api(answer)) if matches!(answer.code, 409 | 422) => {
                let found = self.tasks.get_metadata_opt(&self.name).await?;
                let same = found.is_some_and(|found| found.metadata.uid.as_deref() == Some(self.uid.as_str()));
                Err(ClientError::Api(Box::new(Status { code: code_for(answer.code, same), ..*answer })))
            }
            result => result,
        }
    }
}

/// What an answer with `code` means for the task, given whether it is still the same.
const fn code_for(code: u16, same: bool) -> u16 {
    match (code, same) {
        (_, false) => 404,
        (409, true) => 503,
        (code, true) => code,
    }
}

fn stand(task: ImageTask) -> Standing {
    let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
    if phase.is_final() {
        Standing::Ended
    } else if task.spec.cancelled {
        Standing::Cancelled(Box::new(task))
    } else {
        Standing::Wanted(Box::new(task))
    }
}

/// The time now, in whole seconds as the API has it.
pub fn now() -> Time {
    Time(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_over_the_same_task_passes_and_another_task_is_none_of_ours() {
        let error = |code, same| {
            RequestError::from(ClientError::Api(Box::new(Status { code: code_for(code, same), ..Status::default() })))
        };
        assert!(matches!(error(409, true), RequestError::Unavailable(_)), "tried again until it is written");
        assert!(matches!(error(422, true), RequestError::Invalid(_)));
        for code in [409, 422] {
            assert!(matches!(error(code, false), RequestError::NotFound), "{code}");
        }
    }
}

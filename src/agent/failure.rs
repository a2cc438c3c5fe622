//! From the engine's error to the words in a task's status. Pure.

use vitrine_engine::error::{Error, Kind};

use crate::api::TaskFailure;

/// Longest message, in characters: the bound in the definition of ImageTask.
pub const MAX_MESSAGE: usize = 4096;
/// What a cut-off message ends with.
const CUT: &str = "…";

/// What to write of `error`.
pub fn describe(error: &Error) -> TaskFailure {
    TaskFailure {
        reason: reason(error.kind()).to_owned(),
        rule: error.violation().map(|violation| violation.rule.to_string()),
        message: shorten(&error.to_string(), MAX_MESSAGE),
        // An attempt that was overtaken, or whose leftovers were removed before it began again, is no reason for the next to fail.
        retryable: error.is_retryable() || error.kind() == Kind::Conflict,
    }
}

/// What to write of a task whose true status the API server refuses, for the reason `why`. `done` says how it ended.
pub fn unwritable(done: &str, why: &str) -> TaskFailure {
    let message = format!(
        "{done}, and the task's status cannot say so: {why}. Are the definitions (CRDs) as new as the agents, and does an admission \
         policy or webhook apply to ImageTasks? Correct that, and change the Image"
    );
    TaskFailure {
        reason: reason(Kind::Internal).to_owned(),
        rule: None,
        message: shorten(&message, MAX_MESSAGE),
        retryable: false,
    }
}

/// The name of each kind: part of the interface, so it is spelt out and not derived.
const fn reason(kind: Kind) -> &'static str {
    match kind {
        Kind::Refused => "Refused",
        Kind::InvalidInput => "InvalidInput",
        Kind::Denied => "Denied",
        Kind::NotFound => "NotFound",
        Kind::AlreadyExists => "AlreadyExists",
        Kind::Unavailable => "Unavailable",
        Kind::Changed => "Changed",
        Kind::NoSpace => "NoSpace",
        Kind::Io => "Io",
        Kind::Conflict => "Conflict",
        Kind::InUse => "InUse",
        Kind::Cancelled => "Cancelled",
        Kind::NeedsSpill => "NeedsSpill",
        Kind::Internal => "Internal",
    }
}

/// `text` in at most `most` characters.
pub fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(CUT.chars().count())).chain(CUT.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitrine_engine::model::{Rule, Violation};

    #[test]
    fn a_refusal_names_its_rule_and_is_final() {
        let failure = describe(&Violation::new(Rule::BackingFile, "backing_file_offset", 104, "flatten it").into());
        assert_eq!((failure.reason.as_str(), failure.rule.as_deref()), ("Refused", Some("backing-file")));
        assert!(failure.message.contains("flatten it") && !failure.retryable);
    }

    #[test]
    fn what_may_pass_is_retryable() {
        let failure = describe(&Error::new(Kind::Unavailable, "the server is away").context("importing"));
        assert_eq!(failure.reason, "Unavailable");
        assert_eq!((failure.rule, failure.message.as_str()), (None, "importing: the server is away"));
        assert!(failure.retryable);
        assert!(describe(&Error::new(Kind::Conflict, "overtaken by attempt 2")).retryable);
    }

    #[test]
    fn reasons_are_the_names_of_the_kinds() {
        for kind in [Kind::Refused, Kind::InvalidInput, Kind::NoSpace, Kind::NeedsSpill, Kind::Internal] {
            assert_eq!(reason(kind), format!("{kind:?}"));
        }
    }

    #[test]
    fn messages_are_cut_between_characters() {
        assert_eq!(shorten("äöü", 3), "äöü");
        assert_eq!(shorten("äöüß", 3), "äö…");
        let failure = describe(&Error::new(Kind::Io, "ü".repeat(10_000)));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE);
    }
}

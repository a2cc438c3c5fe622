//! The words in conditions and events: types and reasons, as constants so that no two places spell one thing differently.
//!
//! `Ready`, `Reconciling` and `Stalled` follow kstatus (sigs.k8s.io/cli-utils, `pkg/kstatus`): tools read them without knowing the kind.

/// Types of conditions.
pub mod types {
    /// What spec asks for is there and usable.
    pub const READY: &str = "Ready";
    /// Work towards spec is going on; absent when it is not.
    pub const RECONCILING: &str = "Reconciling";
    /// Work towards spec has stopped until somebody changes something; absent when it has not.
    pub const STALLED: &str = "Stalled";
    /// An ImageStore takes new images.
    pub const WRITABLE: &str = "Writable";
}

/// Reasons: one taxonomy for all kinds. The message carries the particulars.
pub mod reasons {
    /// Everything asked for is done.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Work is going on.
    pub const PROGRESSING: &str = "Progressing";
    /// Waits for something that is expected to come by itself: a live agent, a store that answers.
    pub const WAITING: &str = "Waiting";
    /// The manifest cannot be carried out as it is written, or names something that is not there.
    pub const INVALID_CONFIGURATION: &str = "InvalidConfiguration";
    /// Something failed and is tried again.
    pub const TRANSIENT_ERROR: &str = "TransientError";
    /// Something failed that trying again cannot mend.
    pub const UNRECOVERABLE_ERROR: &str = "UnrecoverableError";
    /// Something failed too often.
    pub const RETRIES_EXHAUSTED: &str = "RetriesExhausted";
    /// The object is being deleted.
    pub const DELETING: &str = "Deleting";
    /// Deletion waits, because others still use it.
    pub const IN_USE: &str = "InUse";
    /// The store's owner forbids writing.
    pub const READ_ONLY: &str = "ReadOnly";
    /// There is no room left.
    pub const NO_SPACE: &str = "NoSpace";
    /// No agent can reach the store.
    pub const UNREACHABLE: &str = "Unreachable";
}

/// Reasons of events beyond those above.
pub mod events {
    /// An import was handed to a node.
    pub const IMPORT_STARTED: &str = "ImportStarted";
    /// A revision is verified and stored.
    pub const IMPORT_SUCCEEDED: &str = "ImportSucceeded";
    /// An attempt failed; another follows or not, as the note says.
    pub const IMPORT_FAILED: &str = "ImportFailed";
    /// A copy was handed to a node.
    pub const COPY_STARTED: &str = "CopyStarted";
    /// A revision is imported into a store from its source again, because it cannot be copied.
    pub const COPY_IMPOSSIBLE: &str = "CopyImpossible";
    /// A store has got its copy.
    pub const COPY_SUCCEEDED: &str = "CopySucceeded";
    /// A store could not take what it shall keep; it is tried again or not, as the note says.
    pub const STORE_FAILED: &str = "StoreFailed";
    /// What a store holds is not what was stored.
    pub const LOCATION_CORRUPT: &str = "LocationCorrupt";
    /// What a store holds could not be read.
    pub const LOCATION_UNREADABLE: &str = "LocationUnreadable";
    /// The node of a running import is gone; another takes over.
    pub const NODE_LOST: &str = "NodeLost";
    /// Data on a node that no longer exists was given up.
    pub const LOCATION_LOST: &str = "LocationLost";
    /// An old revision's data was removed.
    pub const REVISION_REMOVED: &str = "RevisionRemoved";
    /// Data that no Image knew was removed from a store.
    pub const ORPHAN_REMOVED: &str = "OrphanRemoved";
    /// The agents' DaemonSet is not as it shall be, because it cannot be written.
    pub const AGENTS_NOT_APPLIED: &str = "AgentsNotApplied";
    /// The ImageStore to begin with is not there, because it cannot be made.
    pub const DEFAULT_STORE_NOT_MADE: &str = "DefaultStoreNotMade";
    /// A store came into use.
    pub const STORE_READY: &str = "StoreReady";
    /// A store went out of use.
    pub const STORE_NOT_READY: &str = "StoreNotReady";
}

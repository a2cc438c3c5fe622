//! The steps of publishing and of deleting, between which a process may die. Tests stop at each of them.

/// What was done last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The writer's lease is in its folder; nobody knows of it.
    Made,
    /// The entry names the writer.
    Begun,
    /// A part of a larger piece was uploaded; the piece is none yet.
    Part,
    /// All pieces are complete.
    Uploaded,
    /// The record was written.
    Recorded,
    /// The entry says that it is published.
    Published,
    /// The entry says that it is deleted.
    Deleted,
    /// Record and pieces were removed.
    Removed,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 8] = [
        Self::Made,
        Self::Begun,
        Self::Part,
        Self::Uploaded,
        Self::Recorded,
        Self::Published,
        Self::Deleted,
        Self::Removed,
    ];
}

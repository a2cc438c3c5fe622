//! The steps of publishing and of deleting, between which a process may die. Tests stop at each of them.

/// What was done last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The image was made under its private name; nobody knows of it.
    Made,
    /// The fence names the sink.
    Begun,
    /// All bytes are in the image, and it has its length.
    Sized,
    /// The snapshot was made.
    Snapshot,
    /// The snapshot was protected.
    Protected,
    /// The record was written.
    Recorded,
    /// The fence says that it is published.
    Published,
    /// The image has its public name.
    Named,
    /// The snapshot is protected no more.
    Unprotected,
    /// The fence says that it is deleted.
    Deleted,
    /// The image gave up its public name.
    MovedAside,
    /// The record was removed.
    Forgotten,
    /// The snapshot was removed.
    Bare,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 13] = [
        Self::Made,
        Self::Begun,
        Self::Sized,
        Self::Snapshot,
        Self::Protected,
        Self::Recorded,
        Self::Published,
        Self::Named,
        Self::Unprotected,
        Self::Deleted,
        Self::MovedAside,
        Self::Forgotten,
        Self::Bare,
    ];
}

//! The proof that bytes were checked. Stores publish nothing without it.

use super::{ContainerFormat, ContentManifest, Digest, DiskFormat, Properties, Rule, Violation};

/// What came from the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Number of bytes.
    pub length: u64,
    /// Their digests: SHA-256 always, others where one was declared.
    pub digests: Vec<Digest>,
}

/// All that is known at the end of the one pass.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What came.
    pub received: Received,
    /// What the user, or the publisher's checksum file, said it must be.
    pub declared: Vec<Digest>,
    /// The format found.
    pub source_format: DiskFormat,
    /// What was around it.
    pub container_format: ContainerFormat,
    /// What that said of the machine.
    pub properties: Properties,
    /// Names what was asked for; `None` if that has no name.
    pub request: Option<String>,
    /// Rules that inspection found broken.
    pub violations: Vec<Violation>,
    /// What the guest sees.
    pub manifest: ContentManifest,
}

/// Evidence that held. The fields are private and `try_from` is the only way to one, so a value of this type *is* the check.
#[derive(Clone, Debug)]
pub struct Verified {
    evidence: Evidence,
    content_digest: Digest,
}

impl Verified {
    /// What came.
    pub fn received(&self) -> &Received {
        &self.evidence.received
    }

    /// The format found in the source.
    pub fn source_format(&self) -> DiskFormat {
        self.evidence.source_format
    }

    /// What was around it.
    pub fn container_format(&self) -> ContainerFormat {
        self.evidence.container_format
    }

    /// What that said of the machine.
    pub fn properties(&self) -> &Properties {
        &self.evidence.properties
    }

    /// Names what was asked for.
    pub fn request(&self) -> Option<&str> {
        self.evidence.request.as_deref()
    }

    /// What the guest sees.
    pub fn manifest(&self) -> &ContentManifest {
        &self.evidence.manifest
    }

    /// The manifest's root.
    pub fn content_digest(&self) -> &Digest {
        &self.content_digest
    }
}

impl TryFrom<Evidence> for Verified {
    type Error = Violation;

    /// The proof, or the first reason why there is none: a broken format rule, a declared digest that was not computed,
    /// or one that differs from what came.
    fn try_from(evidence: Evidence) -> Result<Self, Violation> {
        if let Some(violation) = evidence.violations.first() {
            return Err(violation.clone());
        }
        for declared in &evidence.declared {
            check_digest(declared, &evidence.received.digests)?;
        }
        let content_digest = evidence.manifest.root();
        Ok(Self { evidence, content_digest })
    }
}

fn check_digest(declared: &Digest, computed: &[Digest]) -> Result<(), Violation> {
    let found = computed.iter().find(|d| d.algorithm() == declared.algorithm());
    if found == Some(declared) {
        return Ok(());
    }
    let found = found.map_or_else(|| "nothing was computed".to_owned(), ToString::to_string);
    Err(Violation::new(
        Rule::ChecksumMismatch,
        "checksum",
        found,
        format!("the source must have {declared}: check the checksum, or whether the file was replaced at its origin"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(declared: &str, computed: &str) -> Evidence {
        Evidence {
            received: Received { length: 1, digests: vec![computed.parse().unwrap()] },
            declared: vec![declared.parse().unwrap()],
            source_format: DiskFormat::Raw,
            container_format: ContainerFormat::Bare,
            properties: Properties::new(),
            request: None,
            violations: vec![],
            manifest: ContentManifest::default(),
        }
    }

    #[test]
    fn only_equal_digests_are_proof() {
        let (a, b) = (format!("md5:{}", "00".repeat(16)), format!("md5:{}", "01".repeat(16)));
        assert!(Verified::try_from(evidence(&a, &a)).is_ok());
        assert_eq!(Verified::try_from(evidence(&a, &b)).unwrap_err().rule, Rule::ChecksumMismatch);
        let sha = format!("sha1:{}", "00".repeat(20));
        assert_eq!(Verified::try_from(evidence(&sha, &a)).unwrap_err().rule, Rule::ChecksumMismatch);
    }

    #[test]
    fn a_violation_is_never_proof() {
        let a = format!("md5:{}", "00".repeat(16));
        let mut evidence = evidence(&a, &a);
        evidence.violations.push(Violation::new(Rule::Dirty, "f", 1, "m"));
        assert_eq!(Verified::try_from(evidence).unwrap_err().rule, Rule::Dirty);
    }
}

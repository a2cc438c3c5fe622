//! What a failed request means, and what can be done about it. Pure: knows the errors of the S3 protocol, and no store.

use std::error::Error as StdError;

use object_store::{Error, client::HttpError, client::HttpErrorKind};

use crate::error::{Kind, find};

/// What a failed request means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The access key, or its secret, is not the right one.
    WrongKey(String),
    /// The access key may not do this.
    NotAllowed,
    /// The clocks of here and there differ too much for a signature to count.
    Clock,
    /// There is no such bucket.
    NoBucket,
    /// There is no such object.
    NoObject,
    /// The object has fewer bytes than were asked for.
    TooShort,
    /// No room, or no more of it for this user.
    NoSpace(String),
    /// A condition was not fulfilled.
    Refused,
    /// The bucket is in another region, or not at this address.
    Elsewhere(String),
    /// The server's certificate is not trusted.
    Certificate(String),
    /// Nobody answers.
    Away(String),
    /// The server cannot at the moment.
    Busy(String),
    /// Anything else.
    Other(String),
}

impl Fault {
    /// What `error` means.
    pub(super) fn of(error: &Error) -> Self {
        if let Some(tls) = find::<rustls::Error>(error) {
            return match tls {
                rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                    Self::Certificate(tls.to_string())
                }
                _ => Self::Away(format!("TLS: {tls}")),
            };
        }
        let text = error.to_string();
        if let Some(code) = between(&text, "<Code>", "</Code>").or_else(|| between(&text, "(code: ", ")")) {
            let said = between(&text, "<Message>", "</Message>").filter(|said| !said.is_empty());
            return Self::of_code(code, said.map_or_else(|| code.to_owned(), |said| format!("{code}: {said}")));
        }
        if let Some(status) = between(&text, "non-2xx status code: ", ":") {
            return Self::of_status(status);
        }
        if let Some(http) = find::<HttpError>(error) {
            return match http.kind() {
                HttpErrorKind::Decode | HttpErrorKind::Unknown => Self::Busy(last_cause(http)),
                _ => Self::Away(last_cause(http)),
            };
        }
        match error {
            Error::NotFound { .. } => Self::NoObject,
            Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => Self::Refused,
            Error::PermissionDenied { .. } => Self::NotAllowed,
            Error::Unauthenticated { .. } => Self::WrongKey("401".to_owned()),
            error => Self::Other(last_cause(error)),
        }
    }

    fn of_code(code: &str, said: String) -> Self {
        match code {
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" => Self::WrongKey(said),
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "UserSuspended" => Self::NotAllowed,
            "RequestTimeTooSkewed" => Self::Clock,
            "NoSuchBucket" => Self::NoBucket,
            "NoSuchKey" | "NoSuchUpload" | "NoSuchVersion" => Self::NoObject,
            "InvalidRange" => Self::TooShort,
            "QuotaExceeded" | "ServiceQuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => {
                Self::NoSpace(said)
            }
            "PreconditionFailed" | "ConditionalRequestConflict" => Self::Refused,
            "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException"
            | "PermanentRedirect"
            | "TemporaryRedirect" => Self::Elsewhere(said),
            "SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout" | "OperationAborted"
            | "UnknownError" => Self::Busy(said),
            _ => Self::Other(said),
        }
    }

    /// For answers without a body, as those to HEAD, and those of proxies in between.
    fn of_status(status: &str) -> Self {
        match status.get(..3).unwrap_or_default() {
            "401" => Self::WrongKey(status.to_owned()),
            "403" => Self::NotAllowed,
            "404" => Self::NoObject,
            "409" | "412" => Self::Refused,
            "416" => Self::TooShort,
            "507" => Self::NoSpace(status.to_owned()),
            "301" | "307" | "308" => Self::Elsewhere(status.to_owned()),
            "408" | "429" | "500" | "502" | "503" | "504" => Self::Busy(status.to_owned()),
            _ => Self::Other(status.to_owned()),
        }
    }

    /// Whether it is known that nothing was changed by the request. Else it may have been done, or be done yet.
    pub(super) fn is_refusal(&self) -> bool {
        !matches!(self, Self::Away(_) | Self::Busy(_) | Self::Other(_))
    }

    /// By what can be done about it.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::WrongKey(_) | Self::NotAllowed => Kind::Denied,
            Self::NoBucket | Self::NoObject => Kind::NotFound,
            Self::NoSpace(_) => Kind::NoSpace,
            Self::Refused => Kind::Conflict,
            Self::Elsewhere(_) | Self::Certificate(_) => Kind::InvalidInput,
            Self::Clock | Self::Away(_) | Self::Busy(_) => Kind::Unavailable,
            Self::TooShort | Self::Other(_) => Kind::Io,
        }
    }

    /// What was found and what to do, for the `bucket` at `endpoint` that is used with the key `id`.
    pub(super) fn advice(&self, endpoint: &str, bucket: &str, id: &str) -> String {
        match self {
            Self::WrongKey(said) => {
                format!(
                    "{endpoint} does not accept access key {id} ({said}): correct accessKeyID and secretAccessKey in the store's Secret"
                )
            }
            Self::NotAllowed => format!(
                "access key {id} may not do this: it needs GetObject, PutObject, DeleteObject and AbortMultipartUpload on the objects \
                 of bucket {bucket}, and ListBucket and ListBucketMultipartUploads on the bucket"
            ),
            Self::Clock => format!(
                "the clocks of this node and of {endpoint} differ by more than the server allows (15 minutes, as a rule): set both \
                 by NTP"
            ),
            Self::NoBucket => format!("{endpoint} has no bucket {bucket}: make it, or correct the store"),
            Self::NoObject => "it does not exist (any more)".to_owned(),
            Self::TooShort => "it ends too early".to_owned(),
            Self::NoSpace(said) => format!("no room is left ({said}): delete images, or raise the quota"),
            Self::Refused => "somebody else was faster".to_owned(),
            Self::Elsewhere(said) => {
                format!(
                    "bucket {bucket} is not to be had at {endpoint} ({said}): correct the store's endpoint and region"
                )
            }
            Self::Certificate(said) => format!(
                "the certificate of {endpoint} is not trusted ({said}): give the authority that signed it as caBundle, or correct the \
                 host name"
            ),
            Self::Away(said) => format!("{endpoint} does not answer ({said}): is it up, and reachable from here?"),
            Self::Busy(said) => {
                format!("{endpoint} answers that it cannot at the moment ({said}); trying again may help")
            }
            Self::Other(said) => format!("{endpoint} answers {said}"),
        }
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found).or(Some(rest)).map(str::trim)
}

/// The innermost cause, which says what happened where the others say during what.
fn last_cause(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: &str, body: &str) -> Error {
        let text =
            format!("Error performing GET http://x/b/k in 1s - Server returned non-2xx status code: {status}: {body}");
        Error::Generic { store: "S3", source: text.into() }
    }

    fn coded(code: &str) -> Fault {
        Fault::of(&answered(
            "400 Bad Request",
            &format!("<?xml?><Error><Code>{code}</Code><Message>so</Message></Error>"),
        ))
    }

    #[test]
    fn codes_say_what_can_be_done() {
        for (code, kind) in [
            ("InvalidAccessKeyId", Kind::Denied),
            ("SignatureDoesNotMatch", Kind::Denied),
            ("AccessDenied", Kind::Denied),
            ("RequestTimeTooSkewed", Kind::Unavailable),
            ("NoSuchBucket", Kind::NotFound),
            ("NoSuchKey", Kind::NotFound),
            ("QuotaExceeded", Kind::NoSpace),
            ("SlowDown", Kind::Unavailable),
            ("PermanentRedirect", Kind::InvalidInput),
            ("EntityTooLarge", Kind::Io),
        ] {
            assert_eq!(coded(code).kind(), kind, "{code}");
        }
        assert_eq!(coded("SlowDown"), Fault::Busy("SlowDown: so".to_owned()));
    }

    #[test]
    fn answers_without_a_code_are_told_by_their_status() {
        for (status, kind) in [
            ("503 Service Unavailable", Kind::Unavailable),
            ("404 Not Found", Kind::NotFound),
            ("403 Forbidden", Kind::Denied),
            ("412 Precondition Failed", Kind::Conflict),
            ("418 I'm a teapot", Kind::Io),
        ] {
            assert_eq!(Fault::of(&answered(status, "")).kind(), kind, "{status}");
        }
    }

    #[test]
    fn untrusted_certificates_are_found_however_deep() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = Error::Generic { store: "S3", source: Box::new(std::io::Error::other(std::io::Error::other(tls))) };
        assert_eq!(Fault::of(&error).kind(), Kind::InvalidInput);
    }
}

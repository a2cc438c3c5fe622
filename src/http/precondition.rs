//! `If-Match`, `If-None-Match` and `If-Range` (RFC 9110, section 13). There are no dates: every version has a strong entity tag.

use http::{HeaderMap, HeaderName, header};

/// What comes of the preconditions of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it.
    Go,
    /// 412.
    Failed,
    /// 304.
    NotModified,
}

/// Holds the request's preconditions against what there is, which has the tag `etag`.
pub fn judge(headers: &HeaderMap, etag: &str) -> Verdict {
    if let Some(wanted) = list(headers, &header::IF_MATCH)
        && !wanted.iter().any(|tag| tag == "*" || tag == etag)
    {
        return Verdict::Failed;
    }
    match list(headers, &header::IF_NONE_MATCH) {
        Some(known) if known.iter().any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag) => {
            Verdict::NotModified
        }
        _ => Verdict::Go,
    }
}

/// Whether the request's range is for what there is: no `If-Range`, or one with this very tag. A date never is.
pub fn range_applies(headers: &HeaderMap, etag: &str) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|tag| tag.to_str().is_ok_and(|tag| tag.trim() == etag))
}

/// The tags of all headers of that name. No tag of ours has a comma in it, so one that has is none of ours however it is split.
fn list(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    let tags = values.iter().flat_map(|value| value.split(',')).map(|tag| tag.trim().to_owned());
    (!values.is_empty()).then(|| tags.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"abc-raw\"";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn tags_are_compared_as_the_rfc_says() {
        let table = [
            (header::IF_NONE_MATCH, "\"abc-raw\"", Verdict::NotModified),
            (header::IF_NONE_MATCH, "\"x\", W/\"abc-raw\"", Verdict::NotModified),
            (header::IF_NONE_MATCH, "*", Verdict::NotModified),
            (header::IF_NONE_MATCH, "\"x\"", Verdict::Go),
            (header::IF_MATCH, "\"abc-raw\"", Verdict::Go),
            (header::IF_MATCH, "*", Verdict::Go),
            (header::IF_MATCH, "W/\"abc-raw\"", Verdict::Failed),
            (header::IF_MATCH, "\"x\"", Verdict::Failed),
        ];
        for (name, value, expected) in table {
            assert_eq!(judge(&headers(&[(name.clone(), value)]), TAG), expected, "{name}: {value}");
        }
        assert_eq!(judge(&HeaderMap::new(), TAG), Verdict::Go);
        let both = headers(&[(header::IF_MATCH, "\"x\""), (header::IF_NONE_MATCH, TAG)]);
        assert_eq!(judge(&both, TAG), Verdict::Failed);
    }

    #[test]
    fn a_range_is_of_the_version_it_was_asked_of() {
        let applies = |value| range_applies(&headers(&[(header::IF_RANGE, value)]), TAG);
        assert!(applies(TAG) && range_applies(&HeaderMap::new(), TAG));
        assert!(!applies("W/\"abc-raw\"") && !applies("\"x\"") && !applies("Sat, 28 Nov 2026 19:00:00 GMT"));
    }
}

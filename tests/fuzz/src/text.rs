//! Texts of publishers and servers.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use vitrine_engine::source::{Checksums, judge_head};

/// The target `text`: a checksum file, whose first line is the name that is looked for, or the head of a server's answer.
pub fn text(data: &[u8]) -> bool {
    match data.split_first() {
        Some((b'h', rest)) => head(rest),
        Some((_, rest)) => checksums(rest),
        None => false,
    }
}

fn checksums(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let (name, text) = text.split_once('\n').unwrap_or(("disk.img", &text));
    let Ok(digest) = Checksums::parse(text).pick(name) else { return false };
    let digest = digest.to_string();
    let (_, hex) = digest.split_once(':').unwrap();
    assert!(text.to_ascii_lowercase().contains(hex), "{digest} does not stand in the file");
    true
}

/// Status, what was asked for, and header fields, a line each.
fn head(data: &[u8]) -> bool {
    let Some((fixed, lines)) = data.split_first_chunk::<6>() else { return false };
    let [status, asked, first, last, has_body, body] = *fixed;
    let Ok(status) = StatusCode::from_u16(200 + u16::from(status) % 300) else { return false };
    let end = u64::from(first) + 1 + u64::from(last);
    let asked = (asked % 3 != 0).then(|| (u64::from(first), (asked % 3 == 1).then_some(end)));
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let body = (has_body % 2 == 1).then_some(u64::from(body));
    let judged = judge_head(asked, status, &headers, body);
    if let (Ok(Some(length)), StatusCode::PARTIAL_CONTENT) = (&judged, status) {
        assert!(asked.is_some_and(|(first, _)| first < *length), "a part of {length} bytes for {asked:?}");
    }
    judged.is_ok()
}

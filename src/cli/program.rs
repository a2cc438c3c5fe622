//! What this program is called: `vitrine`, or as kubectl's plugin `kubectl vitrine`. Messages name commands by it, to be repeated.

use std::{path::Path, sync::OnceLock};

/// The file name by which kubectl finds it.
const PLUGIN: &str = "kubectl-vitrine";

/// What people type to call it.
pub fn name() -> &'static str {
    static NAME: OnceLock<&str> = OnceLock::new();
    NAME.get_or_init(|| {
        let called = std::env::args_os().next().unwrap_or_default();
        let stem = Path::new(&called).file_stem().unwrap_or_default();
        if stem == PLUGIN { "kubectl vitrine" } else { "vitrine" }
    })
}

/// `words` as they would be typed: what a shell would take apart or understand is quoted.
pub fn line<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    let quoted = words.into_iter().map(|word| quote(word.as_ref()));
    std::iter::once(name().to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:@=,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_can_be_typed_again() {
        let line = line(["image", "upload", "my disk's.raw", ""]);
        assert!(line.ends_with(r"image upload 'my disk'\''s.raw' ''"), "{line}");
    }
}

//! The commands that documents tell people to run, so that tests run the very same.

/// The block of commands in `document` that begins with `first`, as it stands there.
///
/// # Panics
/// When there is none.
pub fn commands(document: &str, first: &str) -> String {
    let lines = document.lines().skip_while(|line| !line.starts_with(&format!("    {first}")));
    let block = lines.take_while(|line| line.starts_with("    ")).map(|line| &line[4..]);
    let block: Vec<_> = block.collect();
    assert!(!block.is_empty(), "the document has no {first}");
    block.join("\n")
}

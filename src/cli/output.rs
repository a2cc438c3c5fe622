//! How results are shown: a table for people, JSON and YAML for programs.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use clap::ValueEnum;
use serde::Serialize;
use vitrine_engine::error::{Error, Kind, Result};

pub use crate::client::text::{printable, short_size, size};

/// A form of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people; may change
    #[default]
    Table,
    /// For programs
    Json,
    /// For programs
    Yaml,
}

/// A result in rows of name and value.
pub trait Rows {
    /// The rows, in order. A name may be empty, to go on with the row above.
    fn rows(&self) -> Vec<(&'static str, String)>;
}

impl Output {
    /// Writes `value` to standard output.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print(self, value: &(impl Serialize + Rows)) -> Result<()> {
        write(&self.text(value)?)
    }

    /// `value` as text.
    ///
    /// # Errors
    /// None that can happen.
    pub fn text(self, value: &(impl Serialize + Rows)) -> Result<String> {
        let fault = |e: String| Error::new(Kind::Internal, format!("writing the result as text: {e}"));
        Ok(match self {
            Self::Table => table(&value.rows()),
            Self::Json => serde_json::to_string_pretty(value).map_err(|e| fault(e.to_string()))? + "\n",
            Self::Yaml => serde_yaml::to_string(value).map_err(|e| fault(e.to_string()))?,
        })
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// If it cannot be written.
pub fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("writing to standard output", e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:width$}  {}", printable(value));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_an_image_reaches_the_terminal_raw() {
        let rows = [("a", "\u{1b}[2Jx\ny".to_owned())];
        assert_eq!(table(&rows), "a  \u{fffd}[2Jx\u{fffd}y\n");
    }
}

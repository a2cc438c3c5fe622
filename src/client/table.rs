//! Rows under headings, as kubectl prints them.

use std::fmt::Write as _;

use super::text::printable;

/// Between columns.
const GAP: usize = 3;
/// Where there is nothing to show.
const NONE: &str = "<none>";

/// A table that is being filled.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One with these headings.
    pub fn new<H: Into<String>>(headings: impl IntoIterator<Item = H>) -> Self {
        Self { rows: vec![headings.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.is_empty() { NONE.to_owned() } else { printable(&cell) };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// The whole as text. Nothing follows what stands last in a row.
    pub fn text(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:0$}", width + GAP);
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// What is known of one thing: names, and values beside them. Without a name, the value belongs to the one above.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    lines: Vec<(String, String)>,
}

impl Sheet {
    /// Adds a line, if there is a value.
    pub fn add(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.lines.push((name.to_owned(), value));
        }
    }

    /// Adds several values under one name.
    pub fn add_all(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        for (number, value) in values.into_iter().enumerate() {
            self.add(if number == 0 { name } else { "" }, value);
        }
    }

    /// The whole as text.
    pub fn text(&self) -> String {
        let width = self.lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        self.lines.iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:width$}  {}", printable(value));
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_headings() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["debian-12".to_owned(), "2 GiB".to_owned()]);
        table.row(["ü".to_owned(), String::new()]);
        assert_eq!(table.text(), "NAME        SIZE\ndebian-12   2 GiB\nü           <none>\n");
    }

    #[test]
    fn a_sheet_leaves_out_what_is_not_known() {
        let mut sheet = Sheet::default();
        sheet.add("name", "debian");
        sheet.add("size", "");
        sheet.add_all("locations", ["a".to_owned(), "b\n".to_owned()]);
        assert_eq!(sheet.text(), "name       debian\nlocations  a\n           b\u{fffd}\n");
    }
}

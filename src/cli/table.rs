//! Aligned columns.

use std::io::Write;

use super::Failure;

/// Rows of text under headings.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines; columns of numbers stand to the right.
    pub(super) fn lines(&self) -> Vec<String> {
        let columns = self.rows[0].len();
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column| self.rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        let is_number = |text: &str| text == "-" || !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let right = |column| self.rows.len() > 1 && self.rows[1..].iter().all(|row| is_number(&cell(row, column)));
        let layout: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), right(column))).collect();
        let line = |row: &Vec<String>| {
            let cells = layout.iter().enumerate().map(|(column, (width, right))| {
                let text = cell(row, column);
                if *right { format!("{text:>width$}") } else { format!("{text:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        for line in self.lines() {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stands_left_and_numbers_right() {
        let mut table = Table::new(&["NAME", "N", "NOTE"]);
        table.row(["a".into(), "5".into(), "x".into()]);
        table.row(["longer".into(), "1000".into(), String::new()]);
        assert_eq!(table.lines(), ["NAME       N  NOTE", "a          5  x", "longer  1000"]);
    }
}

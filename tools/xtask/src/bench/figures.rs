//! Medians and tables.

use std::fmt;

/// The middle of `values`, or the mean of the two in the middle; nothing where there are none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values[low] + values[high]) / 2.0)
}

/// The figures in what a program has said, among other lines: `MARK: CASE: NUMBER`.
pub(super) fn told(output: &[u8], mark: &str) -> Vec<(String, f64)> {
    let text = String::from_utf8_lossy(output);
    let one = |line: &str| {
        let (case, number) = line.trim_end().strip_prefix(mark)?.strip_prefix(": ")?.rsplit_once(": ")?;
        Some((case.to_owned(), number.parse().ok()?))
    };
    text.lines().filter_map(one).collect()
}

/// A table in Markdown; columns but the first are flush right.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading.
    pub(super) fn new<const N: usize>(heading: [&str; N]) -> Table {
        Table::of(heading.map(str::to_owned).into())
    }

    /// A table with this heading, of as many columns as it has.
    pub(super) fn of(heading: Vec<String>) -> Table {
        Table { rows: vec![heading] }
    }

    /// Adds a row.
    pub(super) fn row<const N: usize>(&mut self, row: [String; N]) {
        self.add(row.into());
    }

    /// Adds a row of as many columns as the heading has.
    pub(super) fn add(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0).max(3)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    write!(f, "| {cell:<width$} |")?
                } else {
                    write!(f, " {cell:>width$} |")?
                };
            }
            writeln!(f)?;
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let line = "-".repeat(width + 1);
                    if column == 0 {
                        write!(f, "|{line}-|")?
                    } else {
                        write!(f, "{line}:|")?
                    };
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "figures_test.rs"]
mod test;

//! Tables that align, for both command lines.

use std::fmt::Write;

/// Lays a table out, a line per row; columns named in `right` are aligned to the right. What a terminal would obey is left
/// out of cells: some of them come from strangers.
#[must_use]
pub fn render(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let plain = |cell: &String| cell.chars().filter(|c| !c.is_control()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(plain).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let gap = " ".repeat(width - cell.chars().count());
            if right.contains(&column) { format!("{gap}{cell}") } else { format!("{cell}{gap}") }
        });
        // Writing to a text cannot fail.
        let _ = writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(header.to_vec());
    for row in &rows {
        line(row.iter().map(String::as_str).collect());
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_align_by_characters_not_bytes() {
        let rows = [vec!["ä\u{1b}".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "100".to_owned()]];
        assert_eq!(super::render(&["N", "COUNT"], &[1], &rows), "N    COUNT\nä        1\nbcd    100\n");
    }
}

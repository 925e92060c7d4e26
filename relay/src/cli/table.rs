//! Tables that align.

use belay_relay::store::ledger::calendar;

/// Prints a table; columns named in `right` are aligned to the right.
pub(super) fn print(header: &[&str], right: &[usize], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let gap = " ".repeat(width - cell.chars().count());
            if right.contains(&column) { format!("{gap}{cell}") } else { format!("{cell}{gap}") }
        });
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// A time as text, UTC, to the second.
pub(super) fn time(ms: u64) -> String {
    let seconds = ms / 1000 % 86_400;
    let day = calendar::day_text(calendar::day(ms));
    format!("{day} {:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_read_as_dates() {
        assert_eq!(super::time(0), "1970-01-01 00:00:00Z");
        assert_eq!(super::time(951_782_399_000), "2000-02-28 23:59:59Z");
        assert_eq!(super::time(1_795_438_800_000), "2026-11-23 13:00:00Z");
    }
}

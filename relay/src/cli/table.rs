//! Tables on stdout.

pub(super) use belay_protocol::calendar::time_text as time;

/// Prints a table; columns named in `right` are aligned to the right.
pub(super) fn print(header: &[&str], right: &[usize], rows: &[Vec<String>]) {
    print!("{}", belay_protocol::table::render(header, right, rows));
}

//! What people and scripts read: results on stdout, everything else on stderr.

use std::io::{self, Write};

use serde::Serialize;

use super::{Failure, refused};
use crate::api::{client::CallError, types::Finding};

/// Prints to stdout. A reader that has gone (`meshring get | head`) is no error.
pub(super) fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// Prints a line to stderr.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says why a command has failed; what is wrong with the input comes first, line by line.
pub(super) fn failure(failure: &Failure) {
    if let Failure::Call(CallError::Refused { body, .. }) = failure {
        findings(&body.diagnostics);
    }
    let text = failure.to_string();
    if !text.is_empty() {
        note(&format!("meshring: {text}"));
    }
}

/// Diagnostics, one per line.
pub(super) fn findings(findings: &[Finding]) {
    findings.iter().for_each(|finding| note(&finding.to_string()));
}

/// Prints data as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(refused)?;
    print(&format!("{text}\n"));
    Ok(())
}

/// A table with aligned columns. The first row is the head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `3s`, `5m`, `2h`, `4d` since a time in milliseconds since the Unix epoch.
pub(super) fn age(at_ms: u64) -> String {
    let seconds = meshring_core::clock::unix_ms().saturating_sub(at_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `1 proxy`, `2 proxies`.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_without_trailing_blanks() {
        let rows = [vec!["KIND".into(), "NAME".into()], vec!["VirtualService".into(), "a".into()]];
        assert_eq!(table(&rows), "KIND            NAME\nVirtualService  a\n");
    }
}

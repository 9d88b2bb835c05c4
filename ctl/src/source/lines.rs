//! Byte offsets of a text to positions in its file, and back.

use std::cell::Cell;

use crate::diagnostic::Position;

/// The lines of a text that begins at some position of a file.
///
/// A whole file may be one line, so columns are counted on from the last answer: a reader asks in ascending order, and
/// stays linear.
pub(crate) struct Lines<'a> {
    text: &'a str,
    base: Position,
    starts: Vec<usize>,
    /// An offset and how many characters of its line are before it.
    last: Cell<(usize, usize)>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str, base: Position) -> Self {
        let breaks = memchr::memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1);
        Self { text, base, starts: std::iter::once(0).chain(breaks).collect(), last: Cell::new((0, 0)) }
    }

    /// The position of a byte.
    pub(crate) fn position(&self, offset: usize) -> Position {
        let line = self.starts.partition_point(|start| *start <= offset).max(1) - 1;
        let (from, counted) = match self.last.get() {
            (last, counted) if (self.starts[line]..=offset).contains(&last) => (last, counted),
            _ => (self.starts[line], 0),
        };
        let characters = counted + self.text.get(from..offset).unwrap_or_default().chars().count();
        self.last.set((offset, characters));
        let before = if line == 0 { self.base.column } else { 1 };
        Position::new(self.base.line + line as u32, before + characters as u32)
    }

    /// The byte at a position, at the most the end of the text.
    pub(crate) fn offset(&self, at: Position) -> usize {
        let line = at.line.saturating_sub(self.base.line) as usize;
        let before = if line == 0 { self.base.column } else { 1 };
        let Some(start) = self.starts.get(line) else { return self.text.len() };
        let characters = at.column.saturating_sub(before) as usize;
        self.text[*start..].char_indices().nth(characters).map_or(self.text.len(), |(offset, _)| start + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_positions_are_inverse() {
        let lines = Lines::new("aä\nbc\n\nd", Position::new(5, 3));
        let pairs = [(0, (5, 3)), (1, (5, 4)), (3, (5, 5)), (4, (6, 1)), (5, (6, 2)), (7, (7, 1)), (8, (8, 1))];
        for (offset, (line, column)) in pairs {
            assert_eq!(lines.position(offset), Position::new(line, column));
            assert_eq!(lines.offset(Position::new(line, column)), offset);
        }
        assert_eq!(lines.position(1), Position::new(5, 4), "asking back works too");
        assert_eq!(lines.offset(Position::new(99, 1)), 9);
    }
}

//! The dynamic table (RFC 7541 sections 2.3.2 and 4): entries in a queue, their text in one buffer.

use std::collections::VecDeque;

use super::FIELD_OVERHEAD;

/// Bytes of the text that is allocated for the first entry.
const TEXT_BYTES_MIN: usize = 256;

/// A piece of the table's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    pub(super) fn len(self) -> usize {
        self.len as usize
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
}

impl Entry {
    fn text_len(self) -> usize {
        self.name.len() + self.value.len()
    }

    fn size(self) -> usize {
        self.text_len() + FIELD_OVERHEAD
    }
}

/// The name of a new entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name<'a> {
    New(&'a [u8]),
    /// That of an entry, maybe of one that has to leave now.
    Known(Span),
}

impl Name<'_> {
    fn len(self) -> usize {
        match self {
            Self::New(name) => name.len(),
            Self::Known(span) => span.len(),
        }
    }
}

/// Text is only ever appended, also that of an entry whose name is another's: it points there. Otherwise a block could
/// have a long name copied with every other octet of it. What has been evicted goes once the buffer is full: text that is
/// in use moves to the front then, each name for itself.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    text: Vec<u8>,
    /// Octets of all entries; never above `size_max`.
    size: usize,
    size_max: usize,
}

impl Table {
    pub(super) const fn new(size_max: usize) -> Self {
        Self { entries: VecDeque::new(), text: Vec::new(), size: 0, size_max }
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.text.capacity()
    }

    pub(super) fn size_max(&self) -> usize {
        self.size_max
    }

    /// Name and value of an entry, the newest being 0.
    #[inline(always)]
    pub(super) fn field(&self, position: usize) -> Option<(&[u8], &[u8])> {
        let entry = self.entries.get(position)?;
        Some((self.text(entry.name), self.text(entry.value)))
    }

    /// The name of an entry, the newest being 0.
    pub(super) fn name(&self, position: usize) -> Option<Span> {
        Some(self.entries.get(position)?.name)
    }

    #[inline(always)]
    pub(super) fn text(&self, span: Span) -> &[u8] {
        &self.text[span.start as usize..][..span.len()]
    }

    /// Sets the size, and evicts what is beyond it.
    pub(super) fn resize(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict(0);
    }

    /// Empties the table, as an entry does that is larger than the whole table (section 4.4).
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.text.clear();
        self.size = 0;
    }

    /// Octets of all names and values.
    fn text_len(&self) -> usize {
        self.size - self.entries.len() * FIELD_OVERHEAD
    }

    /// What [`Table::insert`] needs to spare for an entry of which so many octets are new text, and so many others are the
    /// name of an entry.
    pub(super) fn spare_len(&self, appended: usize, known: usize) -> usize {
        if self.has_room(appended) { 0 } else { self.text_len() + known }
    }

    fn has_room(&self, appended: usize) -> bool {
        self.text.len() + appended <= self.text.capacity()
    }

    /// Adds an entry that is not larger than the table, after making room for it. `spare` has any content, before and
    /// after.
    pub(super) fn insert(&mut self, mut name: Name<'_>, value: &[u8], spare: &mut [u8]) {
        let text_len = name.len() + value.len();
        self.evict(text_len + FIELD_OVERHEAD);
        let appended = value.len() + if let Name::New(name) = name { name.len() } else { 0 };
        if !self.has_room(appended) {
            self.compact(&mut name, text_len, spare);
        }
        let name = match name {
            Name::New(name) => self.append(name),
            Name::Known(span) => span,
        };
        let entry = Entry { name, value: self.append(value) };
        self.size += entry.size();
        self.entries.push_front(entry);
    }

    /// Makes room for so many octets.
    fn evict(&mut self, wanted: usize) {
        while self.size + wanted > self.size_max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }

    fn append(&mut self, text: &[u8]) -> Span {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(text);
        Span { start, len: text.len() as u32 }
    }

    /// Leaves only text of entries, and the name, in a buffer that has room for a new entry's text, too. As at least half
    /// of the buffer is free then, the cost is that of what is appended until the next time.
    #[cold]
    fn compact(&mut self, name: &mut Name<'_>, text_len: usize, spare: &mut [u8]) {
        let mut kept = 0;
        let mut keep = |span: &mut Span| {
            spare[kept..kept + span.len()].copy_from_slice(&self.text[span.start as usize..][..span.len()]);
            span.start = kept as u32;
            kept += span.len();
        };
        for entry in self.entries.iter_mut().rev() {
            keep(&mut entry.name);
            keep(&mut entry.value);
        }
        if let Name::Known(span) = name {
            keep(span);
        }
        self.text.clear();
        let wanted = 2 * (self.text_len() + text_len);
        if wanted > self.text.capacity() {
            self.text.reserve_exact(wanted.next_power_of_two().max(TEXT_BYTES_MIN));
        }
        self.text.extend_from_slice(&spare[..kept]);
    }
}

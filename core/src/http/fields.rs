//! The fields of one head: a table of fixed capacity that a connection allocates once and reuses.

use super::head::Span;
use super::kind::{FieldKind, HOP_BY_HOP, KINDS, KindSet};
use super::lines::{self, Next};
use crate::limits::NEXT_HOP_HEAD_FIELDS_MAX;

const _: () = assert!(NEXT_HOP_HEAD_FIELDS_MAX <= 128, "the masks have one bit per field");

/// One field line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Field {
    /// The name as received.
    pub name: Span,
    /// The value without the white space around it.
    pub value: Span,
    /// The name, if it is one that matters here.
    pub kind: FieldKind,
}

/// What a header section is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Section {
    /// All of its lines are fields.
    Whole {
        /// Position after the empty line.
        end: usize,
        /// Whether a name has `_` for `-` where that could fool a server behind us.
        has_twin: bool,
    },
    /// Its end is missing; so far nothing is wrong.
    Unfinished,
    /// It has more fields than are allowed.
    TooManyFields,
    /// A line is not a field.
    Malformed,
}

/// The fields of the head that was parsed last. About 1 KB; clearing it costs a few stores, not a kilobyte.
#[derive(Clone, Debug)]
pub struct Fields {
    slots: [Field; NEXT_HOP_HEAD_FIELDS_MAX],
    len: usize,
    /// Kinds that are present.
    kinds: KindSet,
    /// Kinds that are present more than once.
    repeated: KindSet,
    /// The first field of each kind; meaningful for kinds that are present.
    first: [u8; KINDS],
    /// Bit i: field i concerns this hop only and is not written for the next one.
    hop: u128,
    /// Bit i: field i is not spelled `name: value CR LF` exactly, so that it is written anew rather than copied.
    loose: u128,
    /// Position of the empty line.
    end: usize,
}

impl Fields {
    /// An empty table.
    #[must_use]
    pub fn new() -> Box<Self> {
        Box::new(Self {
            slots: [Field::default(); NEXT_HOP_HEAD_FIELDS_MAX],
            len: 0,
            kinds: KindSet::EMPTY,
            repeated: KindSet::EMPTY,
            first: [0; KINDS],
            hop: 0,
            loose: 0,
            end: 0,
        })
    }

    /// Reads the header section that begins at `from`, of so many fields at most, and marks hop-by-hop fields. The table is
    /// complete only if the section is [`Section::Whole`].
    #[inline]
    pub(super) fn read(&mut self, window: &[u8], from: usize, fields_max: usize) -> Section {
        let (mut kinds, mut repeated, mut has_twin) = (0_u32, 0_u32, false);
        (self.len, self.hop, self.loose) = (0, 0, 0);
        let slots = &mut self.slots[..fields_max.min(NEXT_HOP_HEAD_FIELDS_MAX)];
        let (mut at, mut i) = (from, 0);
        loop {
            let line = match lines::next(&window[at..]) {
                Next::Field(line) => line,
                Next::End => break,
                Next::Unfinished => return Section::Unfinished,
                Next::Malformed => return Section::Malformed,
            };
            let Some(slot) = slots.get_mut(i) else { return Section::TooManyFields };
            *slot = Field {
                name: Span::new(at, at + line.name_len),
                value: Span::new(at + line.value_start, at + line.value_end),
                kind: line.kind,
            };
            let bit = 1 << line.kind as u32;
            if kinds & bit == 0 {
                self.first[line.kind as usize] = i as u8;
            }
            repeated |= kinds & bit;
            kinds |= bit;
            if HOP_BY_HOP.contains(line.kind) {
                self.hop |= 1 << i;
            }
            if !line.is_tight {
                self.loose |= 1 << i;
            }
            has_twin |= line.is_twin;
            at += line.len;
            i += 1;
        }
        (self.kinds, self.repeated) = (KindSet::from_bits(kinds), KindSet::from_bits(repeated));
        (self.len, self.end) = (i, at);
        Section::Whole { end: at + 2, has_twin }
    }

    /// How many fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The fields in the order in which they came.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[Field] {
        &self.slots[..self.len]
    }

    /// The fields in the order in which they came.
    #[inline]
    pub fn iter(&self) -> std::slice::Iter<'_, Field> {
        self.as_slice().iter()
    }

    /// Whether a field of this kind is present.
    #[inline]
    #[must_use]
    pub fn has(&self, kind: FieldKind) -> bool {
        self.kinds.contains(kind)
    }

    /// Whether two or more fields of this kind are present.
    #[inline]
    #[must_use]
    pub fn is_repeated(&self, kind: FieldKind) -> bool {
        self.repeated.contains(kind)
    }

    /// The kinds that are present.
    #[inline]
    #[must_use]
    pub fn kinds(&self) -> KindSet {
        self.kinds
    }

    /// The first field of this kind.
    #[inline]
    #[must_use]
    pub fn first(&self, kind: FieldKind) -> Option<&Field> {
        self.has(kind).then(|| &self.slots[self.first[kind as usize] as usize])
    }

    /// The value of the first field of this kind.
    #[inline]
    #[must_use]
    pub fn first_value<'b>(&self, buf: &'b [u8], kind: FieldKind) -> Option<&'b [u8]> {
        self.first(kind).map(|field| field.value.of(buf))
    }

    /// The values of all the fields of this kind.
    pub fn values_of<'a>(&'a self, buf: &'a [u8], kind: FieldKind) -> impl Iterator<Item = &'a [u8]> + 'a {
        let present = if self.has(kind) { self.as_slice() } else { &[] };
        present.iter().filter(move |field| field.kind == kind).map(move |field| field.value.of(buf))
    }

    /// The values of all the fields with this name, in any case.
    pub fn values_named<'a>(&'a self, buf: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        let matches = move |field: &&Field| field.name.of(buf).eq_ignore_ascii_case(name);
        self.iter().filter(matches).map(move |field| field.value.of(buf))
    }

    /// The value of a field for matching: the lines of that name joined with `,`, as Envoy does, since a rule that saw
    /// the first line only could be passed by sending two (CVE-2021-32777). One line is borrowed from `buf`; several
    /// are written to `scratch`, which is cleared before.
    pub fn joined<'s>(&self, buf: &'s [u8], name: &[u8], scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
        let mut values =
            self.iter().filter(|field| field.name.of(buf).eq_ignore_ascii_case(name)).map(|field| field.value.of(buf));
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(first) };
        scratch.clear();
        scratch.extend_from_slice(first);
        scratch.push(b',');
        scratch.extend_from_slice(second);
        for value in values {
            scratch.push(b',');
            scratch.extend_from_slice(value);
        }
        Some(scratch)
    }

    /// Whether the field at this place concerns this hop only.
    #[must_use]
    pub fn is_hop_by_hop(&self, index: usize) -> bool {
        index < self.len && self.hop & (1 << index) != 0
    }

    /// Marks every field of this kind as one for this hop only.
    pub(super) fn drop_kind(&mut self, kind: FieldKind) {
        self.hop |= self.mask_of(KindSet::of(&[kind]));
    }

    /// Marks every field with this name as one for this hop only.
    pub(super) fn drop_named(&mut self, buf: &[u8], name: &[u8]) {
        for i in 0..self.len {
            if self.slots[i].name.of(buf).eq_ignore_ascii_case(name) {
                self.hop |= 1 << i;
            }
        }
    }

    /// One bit for each field of these kinds.
    #[inline]
    pub(super) fn mask_of(&self, kinds: KindSet) -> u128 {
        if !self.kinds.intersects(kinds) {
            return 0;
        }
        let bits = self.iter().enumerate().filter(|(_, field)| kinds.contains(field.kind));
        bits.fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// One bit for each field that is not written for the next hop.
    #[inline]
    pub(super) fn hop_mask(&self) -> u128 {
        self.hop
    }

    /// One bit for each field that is written anew instead of copied.
    #[inline]
    pub(super) fn loose_mask(&self) -> u128 {
        self.loose
    }

    /// Where the line of this field ends, its CR LF included.
    #[inline]
    pub(super) fn line_end(&self, index: usize) -> usize {
        if index + 1 < self.len { self.slots[index + 1].name.start as usize } else { self.end }
    }

    /// Where the field lines begin: equal to [`Self::lines_end`] if there is none.
    #[inline]
    pub(super) fn lines_start(&self) -> usize {
        if self.len == 0 { self.end } else { self.slots[0].name.start as usize }
    }

    /// Where the field lines end and the empty line begins.
    #[inline]
    pub(super) fn lines_end(&self) -> usize {
        self.end
    }
}

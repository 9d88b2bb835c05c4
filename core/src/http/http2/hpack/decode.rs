//! Header blocks to fields (RFC 7541 section 3.2).

use std::ops::Range;

use super::static_table::{STATIC, STATIC_LEN};
use super::table::{Name, Span, Table};
use super::{Error, FIELD_OVERHEAD, TABLE_SIZE_INITIAL, huffman};

/// The largest table: its text is twice as large at the most, and 32 bits say where something is in it.
const TABLE_SIZE_MAX: usize = 1 << 30;

/// Decoder state of one direction of one connection.
#[derive(Debug)]
pub struct Decoder {
    pub(super) table: Table,
    /// What size updates may say.
    limit: usize,
    /// What [`Listing::size`] may become.
    list_max: usize,
}

/// What a whole header block was.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Listing {
    /// Octets of all fields, each with 32 beyond its text (RFC 9113 section 6.5.2).
    pub size: usize,
    /// That is above the limit: the field that went beyond it was not handed out, nor any later one.
    pub too_large: bool,
    /// The block changed the table. As long as none does, equal blocks mean equal fields.
    pub table_changed: bool,
}

impl Decoder {
    /// `max_size` is our SETTINGS_HEADER_TABLE_SIZE in octets as RFC 7541 section 4.1 counts them, at most 2^30. Memory is
    /// allocated with the first entry, and about twice `max_size` at the most.
    ///
    /// The table has 4,096 octets at first, or `max_size` if that is less. A peer that has not seen our SETTINGS yet uses
    /// 4,096: who announces less begins with those, and calls [`Decoder::set_max_size`] when its SETTINGS are acknowledged.
    #[must_use]
    pub const fn new(max_size: usize) -> Self {
        assert!(max_size <= TABLE_SIZE_MAX, "a table that is too large");
        let size = if max_size < TABLE_SIZE_INITIAL { max_size } else { TABLE_SIZE_INITIAL };
        Self { table: Table::new(size), limit: max_size, list_max: usize::MAX }
    }

    /// Bounds [`Listing::size`] of what is decoded at all: a block of which the fields together have more octets is an error as soon as
    /// that is known. It matters above the `list_limit` of [`Decoder::decode`]. A kilobyte of a block may stand for four megabytes, or for a
    /// thousand fields.
    #[must_use]
    pub fn with_list_max(self, octets: usize) -> Self {
        Self { list_max: octets, ..self }
    }

    /// The peer has acknowledged another SETTINGS_HEADER_TABLE_SIZE. If the table is larger, its next block has to begin
    /// with a size update (RFC 7541 section 4.2).
    pub fn set_max_size(&mut self, max_size: usize) {
        assert!(max_size <= TABLE_SIZE_MAX, "a table that is too large");
        self.limit = max_size;
    }

    /// Decodes one whole header block. Calls `field` with name, value, and whether no hop may add the field to a table (RFC
    /// 7541 section 6.2.3), in order. The sink cannot stop it: whatever becomes of the message, the table has to stay in
    /// step (RFC 9113 section 4.3).
    ///
    /// `list_limit` bounds [`Listing::size`], as SETTINGS_MAX_HEADER_LIST_SIZE does. Fields beyond it are decoded, but not
    /// handed out. `work` is scratch of any content, best shared by all connections of a thread. It grows to what the two
    /// strings of a field may need, each no more than 1.6 times its code and no more than the list limit or the table's
    /// size, and by up to the table's size beyond them.
    ///
    /// The time is linear in the block's length, plus what `field` does with fields of `list_limit` together.
    ///
    /// # Errors
    ///
    /// Fails on what is a COMPRESSION_ERROR, and on what is too large to be endured. Fields may have been handed out before.
    pub fn decode(
        &mut self,
        block: &[u8],
        work: &mut Vec<u8>,
        list_limit: usize,
        mut field: impl FnMut(&[u8], &[u8], bool),
    ) -> Result<Listing, Error> {
        let mut rest = block;
        let mut listing = Listing::default();
        if self.table.size_max() > self.limit || matches!(block.first(), Some(0x20..0x40)) {
            self.update_sizes(&mut rest, &mut listing)?;
        }
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.field(index)?;
                if listing.add(name.len() + value.len(), list_limit) {
                    field(name, value, false);
                } else if listing.size > self.list_max {
                    return Err(Error::ListSize);
                }
                continue;
            }
            let is_indexed = first & 0x40 != 0;
            if !is_indexed && first & 0x20 != 0 {
                return Err(Error::SizeUpdateOrder);
            }
            let index = integer(&mut rest, if is_indexed { 6 } else { 4 })?;
            // A longer string is neither handed out nor kept in the table.
            let string_max = list_limit.saturating_sub(listing.size).max(self.table.size_max());
            let (name, name_end) = match index {
                0 => string(&mut rest, work, 0, string_max)?,
                index => (self.name(index)?, 0),
            };
            let (value, work_len) = string(&mut rest, work, name_end, string_max)?;
            let text_len = name.len() + value.len();
            if listing.add(text_len, list_limit) {
                field(name.of(work, &self.table), value.of(work, &self.table), first & 0x10 != 0 && !is_indexed);
            } else if listing.size > self.list_max {
                return Err(Error::ListSize);
            }
            if is_indexed {
                listing.table_changed = true;
                self.insert(&name, &value, text_len, work, work_len);
            }
        }
        Ok(listing)
    }

    /// Takes size updates from the front (section 4.2).
    #[cold]
    fn update_sizes(&mut self, rest: &mut &[u8], listing: &mut Listing) -> Result<(), Error> {
        while let Some(0x20..0x40) = rest.first() {
            let size = integer(rest, 5)?;
            if size > self.limit {
                return Err(Error::SizeUpdateLimit);
            }
            self.table.resize(size);
            listing.table_changed = true;
        }
        if self.table.size_max() > self.limit { Err(Error::SizeUpdateMissing) } else { Ok(()) }
    }

    #[inline(always)]
    fn field(&self, index: usize) -> Result<(&[u8], &[u8]), Error> {
        let position = index.checked_sub(1).ok_or(Error::IndexZero)?;
        match STATIC.get(position) {
            Some(&field) => Ok(field),
            None => self.table.field(position - STATIC_LEN).ok_or(Error::Index),
        }
    }

    /// Adds an entry; both texts have `text_len` octets together, and `work` has them up to `work_len`.
    fn insert(&mut self, name: &Text<'_>, value: &Text<'_>, text_len: usize, work: &mut Vec<u8>, work_len: usize) {
        if text_len + FIELD_OVERHEAD > self.table.size_max() {
            return self.table.clear();
        }
        let known = if let Text::Known(span) = name { Some(*span) } else { None };
        let known_len = known.map_or(0, Span::len);
        let (texts, spare) = spare(work, work_len, self.table.spare_len(text_len - known_len, known_len));
        match known {
            Some(span) => self.table.insert(Name::Known(span), value.new_text(texts), spare),
            None => self.table.insert(Name::New(name.new_text(texts)), value.new_text(texts), spare),
        }
    }

    /// `index` is not 0.
    fn name(&self, index: usize) -> Result<Text<'static>, Error> {
        match STATIC.get(index - 1) {
            Some((name, _)) => Ok(Text::Given(name)),
            None => self.table.name(index - 1 - STATIC_LEN).map(Text::Known).ok_or(Error::Index),
        }
    }
}

impl Listing {
    /// Counts a field; gives whether it is to be handed out.
    #[inline]
    fn add(&mut self, text_len: usize, limit: usize) -> bool {
        self.size = self.size.saturating_add(text_len).saturating_add(FIELD_OVERHEAD);
        self.too_large |= self.size > limit;
        !self.too_large
    }
}

/// Where a name or a value is.
#[derive(Clone, Debug)]
enum Text<'a> {
    /// In the block or in the static table.
    Given(&'a [u8]),
    /// In the scratch.
    Decoded(Range<usize>),
    /// In the dynamic table.
    Known(Span),
    /// Nowhere: it is so long that nobody wants it.
    Dropped(usize),
}

impl Text<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Given(text) => text.len(),
            Self::Decoded(range) => range.len(),
            Self::Known(span) => span.len(),
            Self::Dropped(len) => *len,
        }
    }

    fn of<'b>(&'b self, work: &'b [u8], table: &'b Table) -> &'b [u8] {
        match self {
            Self::Known(span) => table.text(*span),
            text => text.new_text(work),
        }
    }

    /// What is not in the table yet.
    fn new_text<'b>(&'b self, work: &'b [u8]) -> &'b [u8] {
        match self {
            Self::Given(text) => text,
            Self::Decoded(range) => &work[range.clone()],
            Self::Known(_) | Self::Dropped(_) => &[],
        }
    }
}

/// The first bytes of the scratch that are in use, and so many behind them that are not.
fn spare(work: &mut Vec<u8>, used: usize, len: usize) -> (&[u8], &mut [u8]) {
    if work.len() < used + len {
        work.resize(used + len, 0);
    }
    let (used, spare) = work.split_at_mut(used);
    (used, &mut spare[..len])
}

/// Takes an integer with a prefix of so many bits from the front (section 5.1).
#[inline(always)]
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, Error> {
    let mask = (1 << prefix_bits) - 1;
    let (&first, tail) = rest.split_first().ok_or(Error::Truncated)?;
    *rest = tail;
    if first & mask < mask { Ok(usize::from(first & mask)) } else { long_integer(rest, mask) }
}

/// Takes the octets after a first one whose prefix is all ones.
fn long_integer(rest: &mut &[u8], mask: u8) -> Result<usize, Error> {
    let mut value = u64::from(mask);
    for shift in [0, 7, 14, 21, 28] {
        let (&next, tail) = rest.split_first().ok_or(Error::Truncated)?;
        *rest = tail;
        value += u64::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return u32::try_from(value).map(|value| value as usize).map_err(|_| Error::Integer);
        }
    }
    Err(Error::Integer)
}

/// Takes a string from the front (section 5.2). What is in the Huffman code goes to the scratch from `start` on, unless it is
/// longer than `len_max`. Gives how much of the scratch is in use then, too.
#[inline]
fn string<'a>(
    rest: &mut &'a [u8],
    work: &mut Vec<u8>,
    start: usize,
    len_max: usize,
) -> Result<(Text<'a>, usize), Error> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let len = integer(rest, 7)?;
    let (text, tail) = rest.split_at_checked(len).ok_or(Error::StringLength)?;
    *rest = tail;
    if !is_huffman {
        return Ok((Text::Given(text), start));
    }
    let kept_max = huffman::decoded_len_max(text.len()).min(len_max);
    let (_, out) = spare(work, start, kept_max + huffman::SLACK);
    let len = huffman::decode(text, out)?;
    if len > kept_max { Ok((Text::Dropped(len), start)) } else { Ok((Text::Decoded(start..start + len), start + len)) }
}

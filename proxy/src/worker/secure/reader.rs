//! What has come over a secured connection and was not taken yet.

use std::{ops::Range, rc::Rc};

use meshring_core::limits::TLS_RECORDS_WITHOUT_DATA_MAX;
use monoio::buf::{IoBufMut as _, SliceMut};

use super::record::{self, BadRecord, Content, RECORD_BYTES_MAX, RecordKey};
use crate::worker::buffers::{Buffer, Buffers, Held, Input};

/// What has come.
pub(super) struct Reader {
    pub(super) key: RecordKey,
    /// The peer was asked to replace it.
    pub(super) has_asked: bool,
    /// Opened plaintext that nobody has taken (`plain`), and records behind it (from `next`).
    pub(super) bytes: Buffer,
    /// The beginning of a record, while its connection waits without a buffer.
    pub(super) held: Option<Held>,
    pub(super) plain: Range<usize>,
    pub(super) next: usize,
    /// The peer has said that nothing more comes.
    pub(super) closed: bool,
    /// The beginning of a handshake message that goes on in the next record.
    pub(super) handshake: Vec<u8>,
    /// Records in a row that carried no data.
    pub(super) without_data: u32,
}

impl Reader {
    /// Moves plaintext on. `None`: the input is full at its largest size.
    pub(super) fn give(&mut self, input: &mut Input, at_most: usize, bytes_max: usize) -> Option<usize> {
        let available = &self.bytes[self.plain.clone()];
        let count = input.append(&available[..available.len().min(at_most)], bytes_max)?;
        self.plain.start += count;
        if self.plain.is_empty() && self.next == self.bytes.len() {
            self.clear();
        }
        Some(count)
    }

    /// Nothing is left: the buffer is for others.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.release();
        self.plain = 0..0;
        self.next = 0;
    }

    /// Opens the next record if all of it is there: its content lies in `plain`.
    pub(super) fn open(&mut self) -> Result<Option<Content>, BadRecord> {
        self.resume();
        let rest = &mut self.bytes[self.next..];
        let Some(len) = record::record_len(rest)? else { return Ok(None) };
        let Some(record) = rest.get_mut(..len) else { return Ok(None) };
        let opened = self.key.open(record)?;
        let start = self.next + opened.start;
        self.plain = start..start + opened.len;
        self.next += len;
        self.without_data = match opened.content {
            Content::Data if opened.len > 0 => 0,
            _ => self.without_data + 1,
        };
        if self.without_data > TLS_RECORDS_WITHOUT_DATA_MAX {
            return Err(BadRecord::Unexpected);
        }
        Ok(Some(opened.content))
    }

    /// The content of a record that is no data.
    pub(super) fn take_message(&mut self) -> Vec<u8> {
        let message = self.bytes[self.plain.clone()].to_vec();
        self.plain = 0..0;
        if self.next == self.bytes.len() {
            self.clear();
        }
        message
    }

    /// How many whole records are there; `None` where the last one is not whole.
    pub(super) fn whole_records(&self) -> Option<u64> {
        let mut rest = &self.bytes[self.next..];
        let mut count = 0;
        while !rest.is_empty() {
            let len = record::record_len(rest).ok()??;
            rest = rest.get(len..)?;
            count += 1;
        }
        Some(count)
    }

    pub(super) fn has_input(&self) -> bool {
        if !self.plain.is_empty() || self.closed {
            return true;
        }
        let rest = match &self.held {
            Some(held) => &**held,
            None => &self.bytes[self.next..],
        };
        // What is malformed is for `open` to say.
        record::record_len(rest).map_or(true, |len| len.is_some_and(|len| rest.len() >= len))
    }

    pub(super) fn resume(&mut self) {
        if let Some(held) = self.held.take() {
            self.bytes.ensure();
            self.bytes.extend_from_slice(&held);
        }
    }

    pub(super) fn rest(&mut self, pool: &Rc<Buffers>) {
        if !self.plain.is_empty() || self.held.is_some() {
            return;
        }
        let rest = &self.bytes[self.next..];
        if !rest.is_empty() {
            self.held = Some(pool.hold(rest));
        }
        self.clear();
    }

    pub(super) fn lend_space(&mut self) -> SliceMut<Vec<u8>> {
        self.resume();
        self.bytes.ensure();
        // Only asked for when no whole record is left.
        if self.next > 0 {
            self.bytes.drain(..self.next);
            self.next = 0;
            self.plain = 0..0;
        }
        if self.bytes.capacity() < RECORD_BYTES_MAX {
            let further = RECORD_BYTES_MAX - self.bytes.len();
            self.bytes.reserve_exact(further);
        }
        let bytes = self.bytes.lend();
        let (len, capacity) = (bytes.len(), bytes.capacity());
        bytes.slice_mut(len..capacity)
    }
}

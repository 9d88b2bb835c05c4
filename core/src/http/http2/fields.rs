//! The fields of a header block, as HPACK hands them out.

use std::ops::Range;

use super::{Malformed, Pseudo};

/// The pseudo fields that are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

impl Name {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            b":status" => Self::Status,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Line {
    start: u32,
    name_end: u32,
    end: u32,
}

/// A field section: pseudo fields, and the others in their order. Its storage serves one block after the other.
#[derive(Debug, Default)]
pub(super) struct FieldList {
    bytes: Vec<u8>,
    lines: Vec<Line>,
    pseudo: [Option<(u32, u32)>; 6],
    /// What is wrong about its pseudo fields (RFC 9113 section 8.3).
    fault: Option<Malformed>,
}

impl FieldList {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.lines.clear();
        self.pseudo = [None; 6];
        self.fault = None;
    }

    /// Takes the next field.
    #[inline]
    pub(super) fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = self.bytes.len() as u32;
        if name.first() == Some(&b':') {
            self.bytes.extend_from_slice(value);
            return self.push_pseudo(name, start);
        }
        self.bytes.extend_from_slice(name);
        let name_end = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        self.lines.push(Line { start, name_end, end: self.bytes.len() as u32 });
    }

    fn push_pseudo(&mut self, name: &[u8], start: u32) {
        let end = self.bytes.len() as u32;
        match Name::of(name) {
            Some(name) if self.lines.is_empty() && self.pseudo[name as usize].is_none() => {
                self.pseudo[name as usize] = Some((start, end));
            }
            // Unknown, twice, or behind another field.
            _ => self.fault = Some(Malformed::PseudoField),
        }
    }

    fn get(&self, name: Name) -> Option<&[u8]> {
        self.pseudo[name as usize].map(|(start, end)| &self.bytes[start as usize..end as usize])
    }

    /// The pseudo fields of a request.
    pub(super) fn request(&self) -> Result<Pseudo<'_>, Malformed> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.get(Name::Status).is_some() {
            return Err(Malformed::PseudoField);
        }
        Ok(Pseudo {
            method: self.get(Name::Method).unwrap_or_default(),
            scheme: self.get(Name::Scheme),
            authority: self.get(Name::Authority),
            path: self.get(Name::Path),
            protocol: self.get(Name::Protocol),
        })
    }

    /// The one pseudo field of a response.
    pub(super) fn status(&self) -> Result<u16, Malformed> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let status = self.get(Name::Status).ok_or(Malformed::BadStatus)?;
        if self.pseudo.iter().flatten().count() > 1 {
            return Err(Malformed::PseudoField);
        }
        match status {
            &[hundreds @ b'1'..=b'9', tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => {
                Ok([hundreds, tens, ones].iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0')))
            }
            _ => Err(Malformed::BadStatus),
        }
    }

    /// That there are none (RFC 9113 section 8.1).
    pub(super) fn trailers(&self) -> Result<(), Malformed> {
        if self.fault.is_some() || self.pseudo.iter().any(Option::is_some) {
            return Err(Malformed::PseudoField);
        }
        Ok(())
    }

    /// How many others there are.
    pub(super) fn count(&self) -> usize {
        self.lines.len()
    }

    /// The other fields.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let part = |range: Range<u32>| &self.bytes[range.start as usize..range.end as usize];
        self.lines.iter().map(move |line| (part(line.start..line.name_end), part(line.name_end..line.end)))
    }
}

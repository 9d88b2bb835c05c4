//! Finds in an [index](super::index) what a request can match.

use super::{
    AccessView, ArchivedAttribute,
    evaluate::{Seen, masked, visit},
    index::{
        ArchivedAccessIndex, ArchivedIndexKey, ArchivedIndexedAttribute, ArchivedKeyTable, ArchivedRuleRef,
        FOLDED_BYTES_MAX, Part, Rolling, hash,
    },
};
use crate::limits::ACCESS_RULED_OUT_MAX;

/// Which of the index's rules cannot match: a bit each. Those beyond it are tried.
struct RuledOut([u64; ACCESS_RULED_OUT_MAX / 64]);

impl RuledOut {
    fn note(&mut self, first: usize, count: usize) {
        let end = (first + count).min(ACCESS_RULED_OUT_MAX);
        let mut at = first;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            self.0[at / 64] |= (u64::MAX >> (64 - bits)) << (at % 64);
            at += bits;
        }
    }

    /// The first from this one on that may match.
    fn next(&self, mut at: usize) -> usize {
        while let Some(word) = self.0.get(at / 64) {
            let free = !word >> (at % 64);
            if free != 0 {
                return at + free.trailing_zeros() as usize;
            }
            at = (at / 64 + 1) * 64;
        }
        at
    }
}

impl ArchivedAccessIndex {
    /// Shows each rule that a request can match, in the order of `rules`; one may be shown several times. `found` says whether its
    /// group is decided, as far as it is behind that rule.
    pub(super) fn candidates(&self, view: &impl AccessView, found: &mut impl FnMut(&ArchivedRuleRef) -> bool) {
        // Not even zeroed where nothing rules out.
        let ruled_out = (!self.negations.is_empty()).then(|| self.ruled_out(view));
        self.list(0, self.residue.to_native() as usize, ruled_out.as_ref(), found);
        self.filed.probe(view, &mut |key, _, _| {
            self.list(key.first.to_native() as usize, key.count.to_native() as usize, ruled_out.as_ref(), found);
        });
    }

    fn ruled_out(&self, view: &impl AccessView) -> RuledOut {
        let mut out = RuledOut([0; ACCESS_RULED_OUT_MAX / 64]);
        self.negated.probe(view, &mut |key, seen, fold| {
            let first = key.first.to_native() as usize;
            for negation in &self.negations[first..first + key.count.to_native() as usize] {
                // A hash can be had by chance, or on purpose.
                if negation.value.matches(seen, fold) {
                    let first = negation.first.to_native() as usize;
                    for range in &self.ruled_out[first..first + negation.count.to_native() as usize] {
                        out.note(range.first.to_native() as usize, range.count.to_native() as usize);
                    }
                }
            }
        });
        out
    }

    fn list(
        &self,
        first: usize,
        count: usize,
        ruled_out: Option<&RuledOut>,
        found: &mut impl FnMut(&ArchivedRuleRef) -> bool,
    ) {
        let (mut at, end) = (first, first + count);
        loop {
            if let Some(ruled_out) = ruled_out {
                at = ruled_out.next(at);
            }
            if at >= end {
                return;
            }
            let rule = &self.rules[at];
            at += 1;
            if found(rule) && at < end {
                let group = |rule: &ArchivedRuleRef| self.groups[rule.order.to_native() as usize];
                let decided = group(rule);
                if group(&self.rules[at]) == decided {
                    at += self.rules[at..end].partition_point(|other| group(other) == decided);
                }
            }
        }
    }
}

impl ArchivedKeyTable {
    /// Shows each key that a request has, with the value that has it and whether its case does not count.
    fn probe(&self, view: &impl AccessView, found: &mut impl FnMut(&ArchivedIndexKey, Seen<'_>, bool)) {
        for (number, indexed) in self.attributes.iter().enumerate() {
            let is_used = indexed.exact
                || indexed.present
                || !indexed.prefixes.is_empty()
                || !indexed.suffixes.is_empty()
                || !indexed.blocks.is_empty();
            if !is_used {
                continue;
            }
            let fold = matches!(indexed.attribute, ArchivedAttribute::Host);
            visit(view, &indexed.attribute, &mut |seen| {
                let probe = Probe { table: self, number, fold };
                probe.value(indexed, seen, &mut |key| found(key, seen, fold));
                false
            });
        }
    }

    fn key(&self, hash: u64) -> Option<&ArchivedIndexKey> {
        let mask = self.buckets.len() - 1;
        let mut at = hash as usize & mask;
        // At least half of the buckets are empty, and validation checks that one is, so this ends.
        while let Some(position) = self.buckets[at].to_native().checked_sub(1) {
            let key = &self.keys[position as usize];
            if key.hash.to_native() == hash {
                return Some(key);
            }
            at = (at + 1) & mask;
        }
        None
    }
}

/// For the keys of one attribute.
#[derive(Clone, Copy)]
struct Probe<'t> {
    table: &'t ArchivedKeyTable,
    number: usize,
    fold: bool,
}

impl Probe<'_> {
    fn value(self, indexed: &ArchivedIndexedAttribute, seen: Seen<'_>, found: &mut impl FnMut(&ArchivedIndexKey)) {
        let text = match seen {
            Seen::Text(text) | Seen::Header(text) => text,
            Seen::Ip(ip) => {
                for length in indexed.blocks.iter() {
                    self.hash(hash(self.number, Part::Block(*length), &masked(ip, *length).to_be_bytes()), found);
                }
                return;
            }
            Seen::Port(port) => return self.hash(hash(self.number, Part::Exact, &port.to_be_bytes()), found),
        };
        if indexed.present && (!text.is_empty() || matches!(seen, Seen::Header(_))) {
            self.hash(hash(self.number, Part::Present, &[]), found);
        }
        if indexed.exact {
            self.whole(text, found);
        }
        if !indexed.prefixes.is_empty() {
            self.rolling(&indexed.prefixes, Part::Prefix, text.iter().copied(), found);
        }
        if !indexed.suffixes.is_empty() {
            self.rolling(&indexed.suffixes, Part::Suffix, text.iter().rev().copied(), found);
        }
    }

    fn hash(self, hash: u64, found: &mut impl FnMut(&ArchivedIndexKey)) {
        if let Some(key) = self.table.key(hash) {
            found(key);
        }
    }

    fn whole(self, text: &[u8], found: &mut impl FnMut(&ArchivedIndexKey)) {
        if !self.fold {
            return self.hash(hash(self.number, Part::Exact, text), found);
        }
        let mut folded = [0; FOLDED_BYTES_MAX];
        // What is longer is no key.
        let Some(folded) = folded.get_mut(..text.len()) else { return };
        folded.copy_from_slice(text);
        folded.make_ascii_lowercase();
        self.hash(hash(self.number, Part::Exact, folded), found);
    }

    fn rolling(
        self,
        lengths: &[u8],
        part: fn(u8) -> Part,
        mut bytes: impl Iterator<Item = u8>,
        found: &mut impl FnMut(&ArchivedIndexKey),
    ) {
        let (mut rolling, mut at) = (Rolling::new(), 0);
        for length in lengths {
            while at < *length {
                let Some(byte) = bytes.next() else { return };
                rolling.add(if self.fold { byte.to_ascii_lowercase() } else { byte });
                at += 1;
            }
            self.hash(rolling.key(self.number, part(*length)), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ruled_out_is_passed_over() {
        let mut out = RuledOut([0; ACCESS_RULED_OUT_MAX / 64]);
        assert_eq!((out.next(0), out.next(63), out.next(ACCESS_RULED_OUT_MAX + 5)), (0, 63, ACCESS_RULED_OUT_MAX + 5));
        out.note(3, 1);
        out.note(60, 200);
        out.note(ACCESS_RULED_OUT_MAX - 1, 10);
        let free = (0..300).filter(|at| out.next(*at) == *at);
        assert!(free.eq((0..300).filter(|at| *at != 3 && !(60..260).contains(at))));
        assert_eq!((out.next(3), out.next(60), out.next(255)), (4, 260, 260));
        // Of what is beyond nothing is known.
        assert_eq!(out.next(ACCESS_RULED_OUT_MAX - 1), ACCESS_RULED_OUT_MAX);
        out.note(0, usize::MAX / 2);
        assert_eq!(out.next(0), ACCESS_RULED_OUT_MAX);
    }
}

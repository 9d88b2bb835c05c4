//! Which rules a request can match at all.
//!
//! A rule matches only if one of its sources, one of its operations and all of its conditions do. Each of these parts
//! that asks for values gives a set of keys (a value of an attribute, the beginning or end of one, an address block) one of which
//! the request must have. A rule is filed under the keys of the part whose keys the fewest other rules have, so that a thousand
//! rules for a thousand principals are a hash probe, and so are a thousand paths for one principal. Rules without such a
//! part (none at all, or negations, `*` alone) are tried for each request.
//!
//! A probe compares hashes and no texts: what it finds is judged as a whole anyway. Requests cannot insert, so the hash
//! need not resist chosen keys.

use std::collections::HashMap;

use rkyv::{Archive, Deserialize, Serialize};

use super::{
    AccessCondition, AccessRule, AccessTerm, AccessValue, ArchivedAttribute, Attribute, AuthorizationPolicy,
    PolicyAction, TemplatePart,
    evaluate::{AccessView, Seen, masked, visit},
};
use crate::limits::{ACCESS_INDEX_KEY_BYTES_MAX, ACCESS_INDEX_NAMES_MAX};

/// `access_index_of` of an inbound policy without AuthorizationPolicies.
pub const INDEX_NONE: u32 = u32::MAX;

/// The rules of all policies of one workload, by what they ask for.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct AccessIndex {
    /// Positions in `Table::authorization`, in order of evaluation.
    pub policies: Vec<u32>,
    /// Whether one of them is an enforced ALLOW.
    pub allows: bool,
    /// Attributes by which rules are filed.
    pub attributes: Vec<IndexedAttribute>,
    /// Open addressing over `keys`: position + 1, or 0 for an empty bucket. Power of two; at least half are empty.
    pub buckets: Vec<u32>,
    /// Distinct keys.
    pub keys: Vec<IndexKey>,
    /// Rules, those of one key adjacent, in order of evaluation.
    pub rules: Vec<RuleRef>,
    /// Rules that are tried for each request, in order of evaluation.
    pub residue: Vec<RuleRef>,
}

/// One attribute, and the lengths of what rules ask of it, each list sorted.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct IndexedAttribute {
    /// Which.
    pub attribute: Attribute,
    /// Whether whole values are keys.
    pub exact: bool,
    /// Of prefixes, in bytes.
    pub prefixes: Vec<u8>,
    /// Of suffixes, in bytes.
    pub suffixes: Vec<u8>,
    /// Of address blocks, in bits.
    pub blocks: Vec<u8>,
}

/// The rules of one key.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[rkyv(derive(Debug))]
pub struct IndexKey {
    /// Of attribute and value.
    pub hash: u64,
    /// First of `rules`.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// One rule.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[rkyv(derive(Debug))]
pub struct RuleRef {
    /// Position in `policies`.
    pub order: u32,
    /// Position in the policy.
    pub rule: u32,
}

/// How a key's bytes lie in a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Part {
    Exact,
    Prefix(u8),
    Suffix(u8),
    Block(u8),
}

/// Tells the keys of attributes and parts apart.
fn seed(attribute: usize, part: Part) -> u64 {
    let (kind, length) = match part {
        Part::Exact => (0, 0),
        Part::Prefix(length) => (1, length),
        Part::Suffix(length) => (2, length),
        Part::Block(length) => (3, length),
    };
    (attribute as u64) << 16 | kind << 8 | u64::from(length)
}

fn hash(attribute: usize, part: Part, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed(attribute, part))
}

/// The hash of a text's first bytes, for each length in one pass (FNV-1a, then mixed).
#[derive(Clone, Copy)]
struct Rolling(u64);

impl Rolling {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }

    fn key(self, attribute: usize, part: Part) -> u64 {
        let mixed =
            (self.0 ^ seed(attribute, part).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ mixed >> 32
    }

    fn of(bytes: impl Iterator<Item = u8>) -> Self {
        let mut rolling = Self::new();
        bytes.for_each(|byte| rolling.add(byte));
        rolling
    }
}

/// Longest text that is a key as a whole where case does not count: a host with its port is shorter.
const FOLDED_BYTES_MAX: usize = 272;

/// `NAMESPACE/NAME` on the stack; names that are too long for Kubernetes have none.
pub(super) fn joined_service_account(namespace: &[u8], name: &[u8], with: impl FnOnce(&[u8]) -> bool) -> bool {
    let mut joined = [0; 512];
    let len = namespace.len() + 1 + name.len();
    let Some(target) = joined.get_mut(..len) else { return false };
    target[..namespace.len()].copy_from_slice(namespace);
    target[namespace.len()] = b'/';
    target[namespace.len() + 1..].copy_from_slice(name);
    with(target)
}

// ---- building -----------------------------------------------------------------------------------------------------

/// A key of a rule: attribute, part, hash.
type Key = (usize, Part, u64);

struct Builder<'p> {
    attributes: Vec<&'p Attribute>,
    counts: HashMap<u64, u32>,
}

impl AccessIndex {
    /// Files the rules of the policies at these positions.
    #[must_use]
    pub fn new(policies: &[u32], all: &[AuthorizationPolicy]) -> Self {
        let each = || {
            policies
                .iter()
                .enumerate()
                .filter_map(|(order, position)| Some((order, all.get(*position as usize)?)))
                .flat_map(|(order, policy)| {
                    let rules = policy.rules.iter().enumerate();
                    rules.map(move |(rule, body)| (RuleRef { order: order as u32, rule: rule as u32 }, body))
                })
        };
        let enforced_allow = |position: &u32| {
            all.get(*position as usize).is_some_and(|policy| policy.action == PolicyAction::Allow && !policy.dry_run)
        };
        let mut builder = Builder { attributes: Vec::new(), counts: HashMap::new() };
        for (_, rule) in each() {
            builder.count(rule);
        }
        let mut index =
            Self { policies: policies.to_vec(), allows: policies.iter().any(enforced_allow), ..Self::default() };
        let mut filed: Vec<(u64, RuleRef)> = Vec::new();
        let mut used: Vec<(usize, Part)> = Vec::new();
        for (place, rule) in each() {
            match builder.best(rule) {
                Some(keys) => {
                    filed.extend(keys.iter().map(|(_, _, hash)| (*hash, place)));
                    used.extend(keys.iter().map(|(attribute, part, _)| (*attribute, *part)));
                }
                None => index.residue.push(place),
            }
        }
        filed.sort_unstable();
        filed.dedup();
        used.sort_unstable();
        used.dedup();
        // Numbers of attributes are part of the keys: those that no rule uses in the end stay, and are never looked at.
        index.attributes =
            builder.attributes.iter().enumerate().map(|(at, attribute)| indexed(attribute, at, &used)).collect();
        index.lay_out(&filed);
        index
    }

    fn lay_out(&mut self, filed: &[(u64, RuleRef)]) {
        for run in filed.chunk_by(|a, b| a.0 == b.0) {
            let key = IndexKey { hash: run[0].0, first: self.rules.len() as u32, count: run.len() as u32 };
            self.keys.push(key);
            self.rules.extend(run.iter().map(|(_, place)| *place));
        }
        self.buckets = vec![0; (self.keys.len() * 2 + 1).next_power_of_two()];
        let mask = self.buckets.len() - 1;
        for (position, key) in self.keys.iter().enumerate() {
            let mut at = key.hash as usize & mask;
            while self.buckets[at] != 0 {
                at = (at + 1) & mask;
            }
            self.buckets[at] = position as u32 + 1;
        }
    }
}

fn indexed(attribute: &Attribute, at: usize, used: &[(usize, Part)]) -> IndexedAttribute {
    let parts = || used.iter().filter(|(attribute, _)| *attribute == at).map(|(_, part)| *part);
    let lengths = |pick: fn(Part) -> Option<u8>| parts().filter_map(pick).collect();
    IndexedAttribute {
        attribute: attribute.clone(),
        exact: parts().any(|part| part == Part::Exact),
        prefixes: lengths(|part| if let Part::Prefix(length) = part { Some(length) } else { None }),
        suffixes: lengths(|part| if let Part::Suffix(length) = part { Some(length) } else { None }),
        blocks: lengths(|part| if let Part::Block(length) = part { Some(length) } else { None }),
    }
}

impl<'p> Builder<'p> {
    fn number(&mut self, attribute: &'p Attribute) -> Option<usize> {
        if let Some(known) = self.attributes.iter().position(|other| *other == attribute) {
            return Some(known);
        }
        // Each name costs a search among the request's fields or claims.
        let named = |attribute: &Attribute| matches!(attribute, Attribute::Header(_) | Attribute::Claim(_));
        if named(attribute) && self.attributes.iter().filter(|other| named(other)).count() >= ACCESS_INDEX_NAMES_MAX {
            return None;
        }
        self.attributes.push(attribute);
        Some(self.attributes.len() - 1)
    }

    fn count(&mut self, rule: &'p AccessRule) {
        let terms = rule.from.iter().chain(&rule.to).flat_map(|term| &term.conditions);
        for condition in terms.chain(&rule.when) {
            for (_, _, hash) in self.keys(condition).into_iter().flatten() {
                *self.counts.entry(hash).or_default() += 1;
            }
        }
    }

    /// One of these keys each request has that meets the condition; `None` where that cannot be said.
    fn keys(&mut self, condition: &'p AccessCondition) -> Option<Vec<Key>> {
        if condition.values.is_empty() {
            return None;
        }
        let attribute = self.number(&condition.attribute)?;
        condition.values.iter().map(|value| key(attribute, &condition.attribute, value)).collect()
    }

    fn cost(&self, keys: &[Key]) -> (u32, usize) {
        let count = |key: &Key| self.counts.get(&key.2).copied().unwrap_or(0);
        (keys.iter().map(count).max().unwrap_or(0), keys.len())
    }

    /// The keys of the condition of a term that the fewest rules share.
    fn of_term(&mut self, term: &'p AccessTerm) -> Option<Vec<Key>> {
        let all: Vec<_> = term.conditions.iter().filter_map(|condition| self.keys(condition)).collect();
        all.into_iter().min_by_key(|keys| self.cost(keys))
    }

    fn best(&mut self, rule: &'p AccessRule) -> Option<Vec<Key>> {
        let mut parts: Vec<Vec<Key>> = Vec::new();
        for terms in [&rule.from, &rule.to] {
            // Any of the terms may be the one that holds, so that each must have keys.
            let keys: Option<Vec<_>> = terms.iter().map(|term| self.of_term(term)).collect();
            parts.extend(keys.filter(|keys| !keys.is_empty()).map(|keys| keys.concat()));
        }
        parts.extend(rule.when.iter().filter_map(|condition| self.keys(condition)));
        parts.into_iter().min_by_key(|keys| self.cost(keys))
    }
}

fn key(number: usize, attribute: &Attribute, value: &AccessValue) -> Option<Key> {
    let fold = *attribute == Attribute::Host;
    let folded = |byte: u8| if fold { byte.to_ascii_lowercase() } else { byte };
    let prefix = |text: &str| {
        let bytes = &text.as_bytes()[..text.len().min(ACCESS_INDEX_KEY_BYTES_MAX)];
        let part = Part::Prefix(bytes.len() as u8);
        (!bytes.is_empty()).then(|| (part, Rolling::of(bytes.iter().map(|byte| folded(*byte))).key(number, part)))
    };
    let (part, hash) = match value {
        AccessValue::Exact(text) if fold && text.len() > FOLDED_BYTES_MAX => return None,
        AccessValue::Exact(text) => {
            let bytes: Vec<u8> = text.bytes().map(folded).collect();
            (Part::Exact, hash(number, Part::Exact, &bytes))
        }
        AccessValue::Prefix(text) => prefix(text)?,
        AccessValue::Suffix(text) => {
            let len = text.len().min(ACCESS_INDEX_KEY_BYTES_MAX);
            let part = Part::Suffix(len as u8);
            if len == 0 {
                return None;
            }
            (part, Rolling::of(text.bytes().rev().take(len).map(folded)).key(number, part))
        }
        AccessValue::Template(parts) => match parts.first() {
            Some(TemplatePart::Text(text)) => prefix(text)?,
            _ => return None,
        },
        AccessValue::Block { address, length } => {
            let part = Part::Block(*length);
            (part, hash(number, part, &masked(*address, *length).to_be_bytes()))
        }
        AccessValue::Port(port) => (Part::Exact, hash(number, Part::Exact, &port.to_be_bytes())),
        AccessValue::Present => return None,
    };
    Some((number, part, hash))
}

// ---- looking up ---------------------------------------------------------------------------------------------------

impl ArchivedAccessIndex {
    /// Shows each rule that a request can match. One may be shown several times.
    pub(super) fn candidates(&self, view: &impl AccessView, found: &mut impl FnMut(&ArchivedRuleRef)) {
        for rule in self.residue.iter() {
            found(rule);
        }
        for (number, indexed) in self.attributes.iter().enumerate() {
            if !indexed.exact && indexed.prefixes.is_empty() && indexed.suffixes.is_empty() && indexed.blocks.is_empty()
            {
                continue;
            }
            visit(view, &indexed.attribute, &mut |seen| {
                self.of_value(number, indexed, seen, found);
                false
            });
        }
    }

    fn of_value(
        &self,
        number: usize,
        indexed: &ArchivedIndexedAttribute,
        seen: Seen<'_>,
        found: &mut impl FnMut(&ArchivedRuleRef),
    ) {
        let text = match seen {
            Seen::Text(text) | Seen::Header(text) => text,
            Seen::Ip(ip) => {
                for length in indexed.blocks.iter() {
                    self.probe(hash(number, Part::Block(*length), &masked(ip, *length).to_be_bytes()), found);
                }
                return;
            }
            Seen::Port(port) => return self.probe(hash(number, Part::Exact, &port.to_be_bytes()), found),
        };
        let fold = matches!(indexed.attribute, ArchivedAttribute::Host);
        if indexed.exact {
            self.whole(number, text, fold, found);
        }
        if !indexed.prefixes.is_empty() {
            self.rolling(number, &indexed.prefixes, Part::Prefix, text.iter().copied(), fold, found);
        }
        if !indexed.suffixes.is_empty() {
            self.rolling(number, &indexed.suffixes, Part::Suffix, text.iter().rev().copied(), fold, found);
        }
    }

    fn whole(&self, number: usize, text: &[u8], fold: bool, found: &mut impl FnMut(&ArchivedRuleRef)) {
        if !fold {
            return self.probe(hash(number, Part::Exact, text), found);
        }
        let mut folded = [0; FOLDED_BYTES_MAX];
        // What is longer is no key.
        let Some(folded) = folded.get_mut(..text.len()) else { return };
        folded.copy_from_slice(text);
        folded.make_ascii_lowercase();
        self.probe(hash(number, Part::Exact, folded), found);
    }

    fn rolling(
        &self,
        number: usize,
        lengths: &[u8],
        part: fn(u8) -> Part,
        mut bytes: impl Iterator<Item = u8>,
        fold: bool,
        found: &mut impl FnMut(&ArchivedRuleRef),
    ) {
        let (mut rolling, mut at) = (Rolling::new(), 0);
        for length in lengths {
            while at < *length {
                let Some(byte) = bytes.next() else { return };
                rolling.add(if fold { byte.to_ascii_lowercase() } else { byte });
                at += 1;
            }
            self.probe(rolling.key(number, part(*length)), found);
        }
    }

    fn probe(&self, hash: u64, found: &mut impl FnMut(&ArchivedRuleRef)) {
        let mask = self.buckets.len() - 1;
        let mut at = hash as usize & mask;
        // At least half of the buckets are empty, and validation checks that one is, so this ends.
        while let Some(position) = self.buckets[at].to_native().checked_sub(1) {
            let key = &self.keys[position as usize];
            if key.hash.to_native() == hash {
                let first = key.first.to_native() as usize;
                self.rules[first..first + key.count.to_native() as usize].iter().for_each(found);
                return;
            }
            at = (at + 1) & mask;
        }
    }
}

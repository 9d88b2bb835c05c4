//! Which rules a request can match at all.
//!
//! A rule matches only if one of its sources, one of its operations and all of its conditions do. Each of these parts
//! that asks for values gives a set of keys (a value of an attribute, the beginning or end of one, an address block) one of which
//! the request must have. A rule is filed under the keys of the part whose keys the fewest other rules have, so that a thousand
//! rules for a thousand principals are a hash probe, and so are a thousand paths for one principal. Rules without such a
//! part (none at all, or negations alone) are tried for each request.
//!
//! A rule that must not see a value is ruled out by it, by the same kind of probe, whatever it is filed under. And rules that can
//! only match in vain, since an earlier one of the same kind has matched, are not tried: lists are sorted by what a match decides.
//!
//! A probe compares hashes and no texts: what it finds is judged as a whole anyway, and the value that rules out is compared. Requests
//! cannot insert, so the hash need not resist chosen keys.

use std::collections::HashMap;

use rkyv::{Archive, Deserialize, Serialize};

use super::{
    AccessCondition, AccessRule, AccessTerm, AccessValue, Attribute, AuthorizationPolicy, PolicyAction, TemplatePart,
    evaluate::masked,
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
    /// What a match of each of them decides: see [`group`].
    pub groups: Vec<u32>,
    /// Whether one of them is an enforced ALLOW.
    pub allows: bool,
    /// Rules, those of one key adjacent; within a key by group, then in order of evaluation.
    pub rules: Vec<RuleRef>,
    /// How many of `rules`, from the first, are tried for each request.
    pub residue: u32,
    /// What rules are filed under: keys of parts of `rules`.
    pub filed: KeyTable,
    /// What rules must not see: keys of parts of `negations`.
    pub negated: KeyTable,
    /// Values that rule out, those of one key adjacent.
    pub negations: Vec<Negation>,
    /// Parts of `rules`, those of one negation adjacent and ascending.
    pub ruled_out: Vec<RuleRange>,
}

/// Keys by hash.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct KeyTable {
    /// Attributes of which values are keys.
    pub attributes: Vec<IndexedAttribute>,
    /// Open addressing over `keys`: position + 1, or 0 for an empty bucket. Power of two; at least half are empty.
    pub buckets: Vec<u32>,
    /// Distinct keys.
    pub keys: Vec<IndexKey>,
}

/// A value that some rules must not see.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Negation {
    /// Position in `negated.attributes`.
    pub attribute: u32,
    /// The value.
    pub value: AccessValue,
    /// First of `ruled_out`.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Some of `rules`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[rkyv(derive(Debug))]
pub struct RuleRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// One attribute, and the lengths of what rules ask of it, each list sorted.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct IndexedAttribute {
    /// Which.
    pub attribute: Attribute,
    /// Whether whole values are keys.
    pub exact: bool,
    /// Whether it is a key that there is a value.
    pub present: bool,
    /// Of prefixes, in bytes.
    pub prefixes: Vec<u8>,
    /// Of suffixes, in bytes.
    pub suffixes: Vec<u8>,
    /// Of address blocks, in bits.
    pub blocks: Vec<u8>,
}

/// What one key leads to.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[rkyv(derive(Debug))]
pub struct IndexKey {
    /// Of attribute and value.
    pub hash: u64,
    /// The first.
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
pub(super) enum Part {
    Exact,
    Prefix(u8),
    Suffix(u8),
    Block(u8),
    Present,
}

/// Tells the keys of attributes and parts apart.
fn seed(attribute: usize, part: Part) -> u64 {
    let (kind, length) = match part {
        Part::Exact => (0, 0),
        Part::Prefix(length) => (1, length),
        Part::Suffix(length) => (2, length),
        Part::Block(length) => (3, length),
        Part::Present => (4, 0),
    };
    (attribute as u64) << 16 | kind << 8 | u64::from(length)
}

pub(super) fn hash(attribute: usize, part: Part, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed(attribute, part))
}

/// The hash of a text's first bytes, for each length in one pass (FNV-1a, then mixed).
#[derive(Clone, Copy)]
pub(super) struct Rolling(u64);

impl Rolling {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn add(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }

    pub(super) fn key(self, attribute: usize, part: Part) -> u64 {
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
pub(super) const FOLDED_BYTES_MAX: usize = 272;

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

/// What a match of a policy decides: rules of one group need not be tried once one before them has matched. 0 to 2: enforced CUSTOM,
/// DENY and ALLOW. From 3 on: a policy that is not enforced, each for itself. `order`: its position in `policies`.
#[must_use]
pub fn group(action: PolicyAction, dry_run: bool, order: u32) -> u32 {
    match action {
        PolicyAction::Custom(_) if !dry_run => 0,
        PolicyAction::Deny if !dry_run => 1,
        PolicyAction::Allow if !dry_run => 2,
        _ => order + 3,
    }
}

/// A key of a rule: attribute, part, hash.
type Key = (usize, Part, u64);

/// The attributes of a [`KeyTable`] that is being built.
#[derive(Default)]
struct Attributes<'p>(Vec<&'p Attribute>);

#[derive(Default)]
struct Builder<'p> {
    attributes: Attributes<'p>,
    counts: HashMap<u64, u32>,
}

impl AccessIndex {
    /// Files the rules of the policies at these positions.
    #[must_use]
    pub fn new(policies: &[u32], all: &[AuthorizationPolicy]) -> Self {
        let bodies =
            || policies.iter().enumerate().filter_map(|(order, at)| Some((order as u32, all.get(*at as usize)?)));
        let each = || {
            bodies().flat_map(|(order, policy)| {
                let rules = policy.rules.iter().enumerate();
                rules.map(move |(rule, body)| (RuleRef { order, rule: rule as u32 }, body))
            })
        };
        let mut builder = Builder::default();
        for (_, rule) in each() {
            builder.count(rule);
        }
        let groups: Vec<u32> = bodies().map(|(order, policy)| group(policy.action, policy.dry_run, order)).collect();
        let mut index = Self { policies: policies.to_vec(), allows: groups.contains(&2), groups, ..Self::default() };
        // By the key, where there is one, then as `rules` are sorted.
        let mut filed: Vec<(Option<u64>, u32, RuleRef, &AccessRule)> = Vec::new();
        let mut used: Vec<(usize, Part)> = Vec::new();
        for (place, rule) in each() {
            let group = index.groups[place.order as usize];
            match builder.best(rule) {
                Some(keys) => {
                    filed.extend(keys.iter().map(|(_, _, hash)| (Some(*hash), group, place, rule)));
                    used.extend(keys.iter().map(|(attribute, part, _)| (*attribute, *part)));
                }
                None => filed.push((None, group, place, rule)),
            }
        }
        filed.sort_unstable_by_key(|(key, group, place, _)| (*key, *group, *place));
        filed.dedup_by_key(|(key, _, place, _)| (*key, *place));
        index.residue = filed.iter().take_while(|(key, ..)| key.is_none()).count() as u32;
        index.rules = filed.iter().map(|(_, _, place, _)| *place).collect();
        let keys = filed.iter().enumerate().filter_map(|(at, (key, ..))| Some(((*key)?, at)));
        index.filed = KeyTable::new(&builder.attributes, used, &runs(keys));
        index.negate(filed.iter().map(|(.., rule)| *rule));
        index
    }

    /// Notes which of `rules`, in their order, a value rules out.
    fn negate<'p>(&mut self, rules: impl Iterator<Item = &'p AccessRule>) {
        let mut attributes = Attributes::default();
        let mut used: Vec<(usize, Part)> = Vec::new();
        let mut seen: HashMap<(usize, &AccessValue), (u64, Vec<u32>)> = HashMap::new();
        for (at, rule) in rules.enumerate() {
            for (attribute, value) in negated(rule) {
                let Some(number) = attributes.number(attribute) else { continue };
                let Some((_, part, hash)) = key(number, attribute, value) else { continue };
                used.push((number, part));
                let places = &mut seen.entry((number, value)).or_insert_with(|| (hash, Vec::new())).1;
                if places.last() != Some(&(at as u32)) {
                    places.push(at as u32);
                }
            }
        }
        let mut seen: Vec<_> =
            seen.into_iter().map(|((number, value), (hash, places))| (hash, places, number, value)).collect();
        seen.sort_unstable_by(|a, b| (a.0, &a.1, a.2).cmp(&(b.0, &b.1, b.2)));
        for (_, places, number, value) in &seen {
            let first = self.ruled_out.len() as u32;
            let ranges =
                places.chunk_by(|a, b| a + 1 == *b).map(|run| RuleRange { first: run[0], count: run.len() as u32 });
            self.ruled_out.extend(ranges);
            let count = self.ruled_out.len() as u32 - first;
            self.negations.push(Negation { attribute: *number as u32, value: (*value).clone(), first, count });
        }
        self.negated =
            KeyTable::new(&attributes, used, &runs(seen.iter().enumerate().map(|(at, (hash, ..))| (*hash, at))));
    }
}

/// Keys of what is sorted by their hashes.
fn runs(sorted: impl Iterator<Item = (u64, usize)>) -> Vec<IndexKey> {
    let mut keys: Vec<IndexKey> = Vec::new();
    for (hash, at) in sorted {
        match keys.last_mut() {
            Some(last) if last.hash == hash => last.count += 1,
            _ => keys.push(IndexKey { hash, first: at as u32, count: 1 }),
        }
    }
    keys
}

/// Values each of which rules out the whole rule.
fn negated(rule: &AccessRule) -> impl Iterator<Item = (&Attribute, &AccessValue)> {
    // Of several sources or operations any may be the one that holds.
    fn only(terms: &[AccessTerm]) -> &[AccessCondition] {
        if let [term] = terms { &term.conditions } else { &[] }
    }
    let conditions = only(&rule.from).iter().chain(only(&rule.to)).chain(&rule.when);
    conditions.flat_map(|condition| condition.not_values.iter().map(|value| (&condition.attribute, value)))
}

impl KeyTable {
    fn new(attributes: &Attributes<'_>, mut used: Vec<(usize, Part)>, keys: &[IndexKey]) -> Self {
        used.sort_unstable();
        used.dedup();
        let mut table = Self { keys: keys.to_vec(), ..Self::default() };
        // Numbers of attributes are part of the keys: those that no rule uses in the end stay, and are never looked at.
        table.attributes =
            attributes.0.iter().enumerate().map(|(at, attribute)| indexed(attribute, at, &used)).collect();
        table.buckets = vec![0; (keys.len() * 2 + 1).next_power_of_two()];
        let mask = table.buckets.len() - 1;
        for (position, key) in keys.iter().enumerate() {
            let mut at = key.hash as usize & mask;
            while table.buckets[at] != 0 {
                at = (at + 1) & mask;
            }
            table.buckets[at] = position as u32 + 1;
        }
        table
    }
}

fn indexed(attribute: &Attribute, at: usize, used: &[(usize, Part)]) -> IndexedAttribute {
    let parts = || used.iter().filter(|(attribute, _)| *attribute == at).map(|(_, part)| *part);
    let lengths = |pick: fn(Part) -> Option<u8>| parts().filter_map(pick).collect();
    IndexedAttribute {
        attribute: attribute.clone(),
        exact: parts().any(|part| part == Part::Exact),
        present: parts().any(|part| part == Part::Present),
        prefixes: lengths(|part| if let Part::Prefix(length) = part { Some(length) } else { None }),
        suffixes: lengths(|part| if let Part::Suffix(length) = part { Some(length) } else { None }),
        blocks: lengths(|part| if let Part::Block(length) = part { Some(length) } else { None }),
    }
}

impl<'p> Attributes<'p> {
    fn number(&mut self, attribute: &'p Attribute) -> Option<usize> {
        if let Some(known) = self.0.iter().position(|other| *other == attribute) {
            return Some(known);
        }
        // Each name costs a search among the request's fields or claims.
        let named = |attribute: &Attribute| matches!(attribute, Attribute::Header(_) | Attribute::Claim(_));
        if named(attribute) && self.0.iter().filter(|other| named(other)).count() >= ACCESS_INDEX_NAMES_MAX {
            return None;
        }
        self.0.push(attribute);
        Some(self.0.len() - 1)
    }
}

impl<'p> Builder<'p> {
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
        let attribute = self.attributes.number(&condition.attribute)?;
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
    let suffix = |text: &str| {
        let len = text.len().min(ACCESS_INDEX_KEY_BYTES_MAX);
        let part = Part::Suffix(len as u8);
        (len > 0).then(|| (part, Rolling::of(text.bytes().rev().take(len).map(folded)).key(number, part)))
    };
    let (part, hash) = match value {
        AccessValue::Exact(text) if fold && text.len() > FOLDED_BYTES_MAX => return None,
        AccessValue::Exact(text) => {
            let bytes: Vec<u8> = text.bytes().map(folded).collect();
            (Part::Exact, hash(number, Part::Exact, &bytes))
        }
        AccessValue::Prefix(text) => prefix(text)?,
        AccessValue::Suffix(text) => suffix(text)?,
        // It begins and ends with a text, or with what can be anything: the longer text tells more rules apart.
        AccessValue::Template(parts) => match (parts.first(), parts.last()) {
            (Some(TemplatePart::Text(first)), Some(TemplatePart::Text(last))) if last.len() <= first.len() => {
                prefix(first)?
            }
            (_, Some(TemplatePart::Text(last))) if !last.is_empty() => suffix(last)?,
            (Some(TemplatePart::Text(first)), _) => prefix(first)?,
            _ => return None,
        },
        AccessValue::Block { address, length } => {
            let part = Part::Block(*length);
            (part, hash(number, part, &masked(*address, *length).to_be_bytes()))
        }
        AccessValue::Port(port) => (Part::Exact, hash(number, Part::Exact, &port.to_be_bytes())),
        // Addresses and ports are compared with values of their own kind only.
        AccessValue::Present if is_text(attribute) => (Part::Present, hash(number, Part::Present, &[])),
        AccessValue::Present => return None,
    };
    Some((number, part, hash))
}

fn is_text(attribute: &Attribute) -> bool {
    !matches!(attribute, Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp | Attribute::Port)
}

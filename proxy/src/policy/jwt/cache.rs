//! Tokens that this worker has verified on this generation: a client sends the same one with each request, and a look
//! here costs a hundredth of a signature.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use meshring_core::table::lookup::hash;

use super::claims::Claims;

#[derive(Debug)]
struct Entry {
    /// The rule's position among those of the workload: it chose keys, issuer and audiences.
    rule: usize,
    token: Box<[u8]>,
    claims: Rc<Claims>,
    bytes: usize,
    /// Asked for since it was last passed over.
    is_used: bool,
}

/// Bounded by count and bytes. Only verified tokens get in, so nobody without an issuer's key can push others out.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<u64, Entry>,
    /// Each key of `entries` once: who is next to go, unless it was used (second chance).
    order: VecDeque<u64>,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
}

impl Cache {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), bytes: 0, count_max, bytes_max }
    }

    /// The claims of a token that the rule has accepted before and that is still valid. One that has expired stays until
    /// it is pushed out: verifying refuses it.
    pub(super) fn find(&mut self, rule: usize, token: &[u8], now_s: u64) -> Option<Rc<Claims>> {
        let entry = self.entries.get_mut(&key(rule, token))?;
        // The hash finds, the bytes decide.
        if entry.rule != rule || *entry.token != *token || entry.claims.validity().check(now_s).is_err() {
            return None;
        }
        entry.is_used = true;
        Some(Rc::clone(&entry.claims))
    }

    /// Remembers a token that was verified.
    pub(super) fn insert(&mut self, rule: usize, token: &[u8], claims: &Rc<Claims>) {
        let bytes = token.len() + claims.footprint() + size_of::<Entry>() + 2 * size_of::<u64>();
        if bytes > self.bytes_max {
            return;
        }
        let key = key(rule, token);
        if let Some(old) = self.entries.get(&key) {
            // The same token twice, or the other one of two with the same hash: the later takes the place.
            self.bytes -= old.bytes;
        } else {
            while self.entries.len() >= self.count_max || self.bytes + bytes > self.bytes_max {
                if !self.evict() {
                    break;
                }
            }
            self.order.push_back(key);
        }
        self.bytes += bytes;
        let entry = Entry { rule, token: token.into(), claims: Rc::clone(claims), bytes, is_used: false };
        self.entries.insert(key, entry);
    }

    fn evict(&mut self) -> bool {
        while let Some(key) = self.order.pop_front() {
            match self.entries.get_mut(&key) {
                Some(entry) if entry.is_used => {
                    entry.is_used = false;
                    self.order.push_back(key);
                }
                _ => {
                    if let Some(entry) = self.entries.remove(&key) {
                        self.bytes -= entry.bytes;
                    }
                    return true;
                }
            }
        }
        false
    }
}

fn key(rule: usize, token: &[u8]) -> u64 {
    hash(token) ^ (rule as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{claims::Claims, json::Json},
        *,
    };

    fn claims(expires_s: u64) -> Rc<Claims> {
        let payload = format!(r#"{{"exp":{expires_s}}}"#);
        Rc::new(Claims::new(Json::parse(payload.as_bytes()).unwrap(), b"", Vec::new()).unwrap())
    }

    #[test]
    fn a_token_is_found_for_its_rule_and_until_it_expires() {
        let mut cache = Cache::new(8, 1 << 20);
        cache.insert(1, b"a.b.c", &claims(1_000));
        assert!(cache.find(1, b"a.b.c", 1_060).is_some());
        assert!(cache.find(1, b"a.b.c", 1_061).is_none());
        assert!(cache.find(0, b"a.b.c", 1_000).is_none());
        assert!(cache.find(1, b"a.b.d", 1_000).is_none());
    }

    #[test]
    fn the_bounds_hold_and_what_is_used_stays() {
        let one = 2 * size_of::<u64>() + size_of::<Entry>() + claims(1).footprint() + 7;
        for (count_max, bytes_max) in [(10, usize::MAX / 2), (usize::MAX, 10 * one)] {
            let mut cache = Cache::new(count_max, bytes_max);
            for number in 0..1_000 {
                cache.insert(0, format!("{number:07}").as_bytes(), &claims(1));
                assert!(cache.find(0, b"0000000", 0).is_some(), "{number}");
                assert!(cache.entries.len() <= 10 && cache.bytes <= 10 * one);
                assert_eq!(cache.order.len(), cache.entries.len());
            }
            assert_eq!(cache.entries.len(), 10);
            // Again and again the same one takes no more room.
            (0..100).for_each(|_| cache.insert(0, b"0000999", &claims(1)));
            assert_eq!((cache.order.len(), cache.entries.len()), (10, 10));
        }
        let mut small = Cache::new(10, one - 1);
        small.insert(0, b"0000000", &claims(1));
        assert!(small.entries.is_empty());
    }
}

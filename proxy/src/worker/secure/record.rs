//! TLS records after the handshake (RFC 8446 section 5, RFC 5246 section 6.2), one direction each.
//!
//! rustls does the handshake and derives the keys; from then on records are sealed and opened here, in place and without
//! an allocation. rustls 0.23 copies each record into a vector of its own. It is the same split of work as with kernel
//! TLS, so both ways share everything else.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

/// Type, version, length.
pub(crate) const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// TLS 1.2 with GCM sends a part of the nonce (RFC 5288 section 3).
const EXPLICIT_NONCE_BYTES: usize = 8;
/// Most plaintext in one record (RFC 8446 section 5.1).
pub(crate) const PLAINTEXT_BYTES_MAX: usize = 1 << 14;
/// What sealing adds to a record at most.
pub(crate) const OVERHEAD_BYTES_MAX: usize = HEADER_BYTES + EXPLICIT_NONCE_BYTES + 1 + TAG_BYTES;
/// The longest record that is accepted: TLS 1.3 allows 256 bytes of padding and type, TLS 1.2 needs less than that.
pub(crate) const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAINTEXT_BYTES_MAX + 256;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Alert,
    Handshake,
    Data,
}

impl Content {
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            21 => Self::Alert,
            22 => Self::Handshake,
            23 => Self::Data,
            _ => return None,
        })
    }

    /// As on the wire.
    pub(crate) fn to_u8(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }
}

/// A record that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRecord {
    #[error("a TLS record is larger than the protocol allows")]
    TooLarge,
    #[error("a TLS record does not decrypt")]
    Decrypt,
    #[error("a TLS record of a type that must not come here")]
    Unexpected,
    /// Ours: nothing that the peer has done.
    #[error("too many TLS records under one key")]
    Exhausted,
}

impl BadRecord {
    /// The alert to send (RFC 8446 section 6).
    pub(crate) fn alert(self) -> u8 {
        match self {
            Self::Unexpected => 10,
            Self::Decrypt => 20,
            Self::TooLarge => 22,
            Self::Exhausted => 80,
        }
    }
}

/// The key of one direction.
pub(crate) struct RecordKey {
    key: LessSafeKey,
    iv: [u8; 12],
    /// Of the next record.
    sequence: u64,
    is_tls13: bool,
    /// TLS 1.2 with GCM.
    has_explicit_nonce: bool,
    /// Records under this key.
    used: u64,
    /// When it is worn; `u64::MAX` with ChaCha20-Poly1305, whose sequence numbers end before its security does (RFC 8446
    /// section 5.5).
    records_max: u64,
}

impl std::fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordKey").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// An opened record: where its plaintext lies in the bytes that were opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) content: Content,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Keys that this record layer does not know: a cipher suite of a later rustls.
#[derive(Debug, thiserror::Error)]
#[error("the negotiated cipher suite is not supported")]
pub(crate) struct UnknownSecrets;

impl RecordKey {
    /// From what rustls has derived; `sequence` is that of the next record. `records_max`: when a key of AES-GCM is worn, see
    /// [`TLS_RECORDS_PER_KEY_MAX`](meshring_core::limits::TLS_RECORDS_PER_KEY_MAX).
    pub(crate) fn new(
        secrets: &ConnectionTrafficSecrets,
        sequence: u64,
        version: ProtocolVersion,
        records_max: u64,
    ) -> Result<Self, UnknownSecrets> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(UnknownSecrets),
        };
        let is_tls13 = version == ProtocolVersion::TLSv1_3;
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| UnknownSecrets)?;
        let iv = iv.as_ref().try_into().map_err(|_| UnknownSecrets)?;
        let is_gcm = !std::ptr::eq(algorithm, &CHACHA20_POLY1305);
        let has_explicit_nonce = !is_tls13 && is_gcm;
        let records_max = if is_gcm { records_max } else { u64::MAX };
        Ok(Self { key: LessSafeKey::new(key), iv, sequence, is_tls13, has_explicit_nonce, used: 0, records_max })
    }

    /// The key after this one, which only TLS 1.3 has.
    pub(crate) fn next(&self, secrets: &ConnectionTrafficSecrets, sequence: u64) -> Result<Self, UnknownSecrets> {
        Self::new(secrets, sequence, ProtocolVersion::TLSv1_3, self.records_max)
    }

    /// Whether the protocol can change this key (RFC 8446 section 4.6.3).
    pub(crate) fn is_tls13(&self) -> bool {
        self.is_tls13
    }

    /// Whether it is time for another key.
    pub(crate) fn is_worn(&self) -> bool {
        self.used >= self.records_max
    }

    /// Whether nothing more may be sealed with it, but an alert: what should have been replaced was not. It is no limit for
    /// opening: that reveals nothing which sealing has not, and a single forgery ends the connection (the limits for those in
    /// RFC 9147 section 4.5.3 are for protocols that go on).
    pub(crate) fn is_exhausted(&self) -> bool {
        self.used >= self.records_max.saturating_mul(2)
    }

    /// Counts records that the kernel seals or opens under this key.
    pub(crate) fn count(&mut self, records: u64) {
        self.used = self.used.saturating_add(records);
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        nonce
    }

    /// RFC 5246 section 6.2.3.3.
    fn aad_tls12(&self, content: u8, len: usize) -> [u8; 13] {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..11].copy_from_slice(&[content, 3, 3]);
        aad[11..].copy_from_slice(&(len as u16).to_be_bytes());
        aad
    }

    fn advance(&mut self) -> Result<(), BadRecord> {
        self.count(1);
        self.sequence = self.sequence.checked_add(1).ok_or(BadRecord::Exhausted)?;
        Ok(())
    }

    /// Appends a record with this plaintext (at most [`PLAINTEXT_BYTES_MAX`]) to `out`.
    pub(crate) fn seal(&mut self, content: Content, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), BadRecord> {
        if self.is_exhausted() && content != Content::Alert {
            return Err(BadRecord::Exhausted);
        }
        let nonce = self.nonce();
        let (outer, explicit, inner) = match self.is_tls13 {
            true => (Content::Data, 0, 1),
            false if self.has_explicit_nonce => (content, EXPLICIT_NONCE_BYTES, 0),
            false => (content, 0, 0),
        };
        let len = explicit + plaintext.len() + inner + TAG_BYTES;
        let length = u16::try_from(len).ok().filter(|_| plaintext.len() <= PLAINTEXT_BYTES_MAX);
        let [high, low] = length.ok_or(BadRecord::TooLarge)?.to_be_bytes();
        let header = [outer.to_u8(), 3, 3, high, low];
        out.reserve(HEADER_BYTES + len);
        out.extend_from_slice(&header);
        if explicit > 0 {
            out.extend_from_slice(&nonce[4..]);
        }
        let body = out.len();
        out.extend_from_slice(plaintext);
        if self.is_tls13 {
            out.push(content.to_u8());
        }
        let sealed = Nonce::assume_unique_for_key(nonce);
        let tag = if self.is_tls13 {
            self.key.seal_in_place_separate_tag(sealed, Aad::from(header), &mut out[body..])
        } else {
            let aad = self.aad_tls12(content.to_u8(), plaintext.len());
            self.key.seal_in_place_separate_tag(sealed, Aad::from(aad), &mut out[body..])
        };
        out.extend_from_slice(tag.map_err(|_| BadRecord::TooLarge)?.as_ref());
        self.advance()
    }

    /// Opens a whole record (see [`record_len`]) in place.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<Opened, BadRecord> {
        let (header, body) = record.split_first_chunk_mut::<HEADER_BYTES>().ok_or(BadRecord::Unexpected)?;
        let outer = Content::from_u8(header[0]).ok_or(BadRecord::Unexpected)?;
        if self.is_tls13 {
            return self.open_tls13(*header, outer, body);
        }
        let explicit = if self.has_explicit_nonce { EXPLICIT_NONCE_BYTES } else { 0 };
        let len = body.len().checked_sub(explicit + TAG_BYTES).ok_or(BadRecord::Decrypt)?;
        if len > PLAINTEXT_BYTES_MAX {
            return Err(BadRecord::TooLarge);
        }
        let mut nonce = self.nonce();
        if explicit > 0 {
            nonce[4..].copy_from_slice(&body[..explicit]);
        }
        let aad = Aad::from(self.aad_tls12(header[0], len));
        let opened = self.key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut body[explicit..]);
        let len = opened.map_err(|_| BadRecord::Decrypt)?.len();
        self.advance()?;
        Ok(Opened { content: outer, start: HEADER_BYTES + explicit, len })
    }

    fn open_tls13(&mut self, header: [u8; HEADER_BYTES], outer: Content, body: &mut [u8]) -> Result<Opened, BadRecord> {
        // After the handshake everything is encrypted, and says so (RFC 8446 section 5.2).
        if outer != Content::Data {
            return Err(BadRecord::Unexpected);
        }
        let nonce = Nonce::assume_unique_for_key(self.nonce());
        let inner = self.key.open_in_place(nonce, Aad::from(header), body).map_err(|_| BadRecord::Decrypt)?;
        // The type is the last byte that is not padding.
        let end = inner.iter().rposition(|&byte| byte != 0).ok_or(BadRecord::Unexpected)?;
        let content = Content::from_u8(inner[end]).ok_or(BadRecord::Unexpected)?;
        if end > PLAINTEXT_BYTES_MAX {
            return Err(BadRecord::TooLarge);
        }
        // RFC 8446 section 5.1: only application data may be empty.
        if end == 0 && content != Content::Data {
            return Err(BadRecord::Unexpected);
        }
        self.advance()?;
        Ok(Opened { content, start: HEADER_BYTES, len: end })
    }
}

/// How long the record is that begins here, header included; `None` while the header is not there.
pub(crate) fn record_len(bytes: &[u8]) -> Result<Option<usize>, BadRecord> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let len = HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
    if len > RECORD_BYTES_MAX { Err(BadRecord::TooLarge) } else { Ok(Some(len)) }
}

/// How many bytes are missing until the last record that has begun is whole, or its header where that is cut; 0 where none has.
pub(crate) fn missing_len(mut bytes: &[u8]) -> Result<usize, BadRecord> {
    while !bytes.is_empty() {
        let Some(len) = record_len(bytes)? else { return Ok(HEADER_BYTES - bytes.len()) };
        match bytes.get(len..) {
            Some(rest) => bytes = rest,
            None => return Ok(len - bytes.len()),
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn secrets(which: u8) -> ConnectionTrafficSecrets {
        let (key, iv) = (AeadKey::from([7; 32]), Iv::from([9; 12]));
        match which {
            0 => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        }
    }

    const RECORDS_MAX: u64 = 10;

    fn pair(which: u8, version: ProtocolVersion) -> (RecordKey, RecordKey) {
        let key = || RecordKey::new(&secrets(which), 3, version, RECORDS_MAX).unwrap();
        (key(), key())
    }

    const CASES: [(u8, ProtocolVersion); 4] = [
        (0, ProtocolVersion::TLSv1_3),
        (1, ProtocolVersion::TLSv1_3),
        (0, ProtocolVersion::TLSv1_2),
        (1, ProtocolVersion::TLSv1_2),
    ];

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_and_nothing_else(
            data in proptest::collection::vec(any::<u8>(), 0..300),
            flip in any::<(usize, u8)>(),
        ) {
            for (which, version) in CASES {
                let (mut sealer, mut opener) = pair(which, version);
                let mut wire = Vec::new();
                sealer.seal(Content::Data, &data, &mut wire).unwrap();
                sealer.seal(Content::Alert, &[1, 0], &mut wire).unwrap();
                prop_assert!(wire.len() <= data.len() + 2 + 2 * OVERHEAD_BYTES_MAX);
                let first = record_len(&wire).unwrap().unwrap();
                let mut broken = wire[..first].to_vec();
                let at = flip.0 % first;
                if flip.1 != 0 && !(1..HEADER_BYTES).contains(&at) {
                    broken[at] ^= flip.1;
                    prop_assert!(pair(which, version).1.open(&mut broken).is_err(), "byte {at} changed");
                }
                let opened = opener.open(&mut wire[..first]).unwrap();
                prop_assert_eq!(opened.content, Content::Data);
                prop_assert_eq!(&wire[opened.start..opened.start + opened.len], &data[..]);
                let second = opener.open(&mut wire[first..]).unwrap();
                prop_assert_eq!((second.content, second.len), (Content::Alert, 2));
            }
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            for (which, version) in CASES {
                prop_assert!(pair(which, version).1.open(&mut bytes.clone()).is_err());
            }
            let _ = record_len(&bytes);
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let (mut sealer, mut opener) = pair(0, ProtocolVersion::TLSv1_3);
        let mut wire = Vec::new();
        assert_eq!(sealer.seal(Content::Data, &[0; PLAINTEXT_BYTES_MAX + 1], &mut wire), Err(BadRecord::TooLarge));
        assert!(wire.is_empty());
        sealer.seal(Content::Data, &[1; PLAINTEXT_BYTES_MAX], &mut wire).unwrap();
        assert_eq!(record_len(&wire), Ok(Some(wire.len())));
        assert_eq!(opener.open(&mut wire).unwrap().len, PLAINTEXT_BYTES_MAX);
        assert_eq!(record_len(&[23, 3, 3, 0xff, 0xff]), Err(BadRecord::TooLarge));
        assert_eq!(record_len(&[23, 3, 3, 0]), Ok(None));
        let records = [23, 3, 3, 0, 1, 9, 23, 3, 3, 0, 3, 7, 7, 7];
        let missing: Vec<_> = (0..=records.len()).map(|len| missing_len(&records[..len]).unwrap()).collect();
        assert_eq!(missing, [0, 4, 3, 2, 1, 1, 0, 4, 3, 2, 1, 3, 2, 1, 0]);
        assert_eq!(missing_len(&[23, 3, 3, 0xff, 0xff]), Err(BadRecord::TooLarge));
    }

    #[test]
    fn a_key_of_aes_gcm_wears_out_for_the_one_who_seals_and_only_an_alert_goes_further() {
        for (which, version) in CASES {
            let (mut sealer, mut opener) = pair(which, version);
            let (mut wire, mut sealed) = (Vec::new(), 0);
            while sealed < 5 * RECORDS_MAX && sealer.seal(Content::Data, b"one", &mut wire).is_ok() {
                sealed += 1;
                assert_eq!(sealer.is_worn(), which == 0 && sealed >= RECORDS_MAX);
                assert_eq!(opener.open(&mut wire).map(|opened| opened.len), Ok(3));
                wire.clear();
            }
            assert_eq!(sealed, if which == 0 { 2 * RECORDS_MAX } else { 5 * RECORDS_MAX });
            assert!(wire.is_empty(), "what is refused leaves nothing behind");
            sealer.seal(Content::Alert, &[2, 80], &mut wire).unwrap();
            assert_eq!(opener.open(&mut wire).map(|opened| opened.content), Ok(Content::Alert));
        }
    }

    #[test]
    fn the_next_key_begins_anew() {
        let (mut sealer, _) = pair(0, ProtocolVersion::TLSv1_3);
        sealer.count(2 * RECORDS_MAX);
        assert!(sealer.is_exhausted());
        let next = sealer.next(&secrets(0), 0).unwrap();
        assert!(!next.is_worn() && next.is_tls13() && next.records_max == RECORDS_MAX);
    }

    #[test]
    fn a_record_is_taken_once_and_in_order() {
        let (mut sealer, mut opener) = pair(0, ProtocolVersion::TLSv1_3);
        let mut wire = Vec::new();
        sealer.seal(Content::Data, b"first", &mut wire).unwrap();
        let again = wire.clone();
        opener.open(&mut wire).unwrap();
        assert_eq!(opener.open(&mut again.clone()), Err(BadRecord::Decrypt));
    }
}

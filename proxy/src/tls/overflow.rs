//! `record_overflow` in the middle of a handshake (RFC 8446 section 5.1).
//!
//! rustls 0.23 says `decode_error` of a record whose header announces too much, and only rustls has the keys of the handshake. So the
//! cipher suites that it gets here are its own but for one thing: while [`instead`] runs, an alert that is sealed becomes this one.

use std::{cell::Cell, sync::LazyLock};

use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
    crypto::{
        CipherSuiteCommon, CryptoProvider, aws_lc_rs,
        cipher::{
            AeadKey, Iv, KeyBlockShape, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundOpaqueMessage,
            OutboundPlainMessage, Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError,
        },
    },
};

/// `record_overflow`, which is always fatal.
const ALERT: [u8; 2] = [2, 22];
/// Type, version and length of an alert that is not sealed, whichever version a record may have.
const HEADER_BYTES: usize = 5;

thread_local! {
    static IS_MEANT: Cell<bool> = const { Cell::new(false) };
}

/// While it lives; a panic ends that, too, for the sake of the next connection.
struct Meant;

impl Meant {
    fn now() -> Self {
        IS_MEANT.set(true);
        Self
    }
}

impl Drop for Meant {
    fn drop(&mut self) {
        IS_MEANT.set(false);
    }
}

/// The library's provider, with X25519MLKEM768 first (the crate's feature `prefer-post-quantum`) and with suites that [`instead`] works with.
pub(super) fn provider() -> CryptoProvider {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> =
        LazyLock::new(|| aws_lc_rs::default_provider().cipher_suites.into_iter().map(wrapped).collect());
    CryptoProvider { cipher_suites: SUITES.clone(), ..aws_lc_rs::default_provider() }
}

/// Runs `step`, which is to append what rustls says to the bytes that it gets, and makes a fatal alert in them `record_overflow`.
pub(super) fn instead(out: &mut Vec<u8>, step: impl FnOnce(&mut Vec<u8>)) {
    let begun = out.len();
    let meant = Meant::now();
    step(out);
    drop(meant);
    let mut rest = &mut out[begun..];
    while let Some((&mut [kind, _, _, high, low], records)) = rest.split_first_chunk_mut::<HEADER_BYTES>() {
        let Some((body, next)) = records.split_at_mut_checked(u16::from_be_bytes([high, low]).into()) else { return };
        // One that is not sealed.
        if ContentType::from(kind) == ContentType::Alert && body.len() == ALERT.len() {
            body.copy_from_slice(&ALERT);
        }
        rest = next;
    }
}

/// Made once in the life of a process.
fn wrapped(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit: common.confidentiality_limit,
    };
    match suite {
        SupportedCipherSuite::Tls13(suite) => SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
            common: common(&suite.common),
            hkdf_provider: suite.hkdf_provider,
            aead_alg: Box::leak(Box::new(Wrapped(suite.aead_alg))),
            quic: suite.quic,
        }))),
        SupportedCipherSuite::Tls12(suite) => SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
            common: common(&suite.common),
            prf_provider: suite.prf_provider,
            kx: suite.kx,
            sign: suite.sign,
            aead_alg: Box::leak(Box::new(Wrapped(suite.aead_alg))),
        }))),
    }
}

struct Wrapped<A: ?Sized + 'static>(&'static A);

impl Tls13AeadAlgorithm for Wrapped<dyn Tls13AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Sealer(self.0.encrypter(key, iv)))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.0.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(&self, key: AeadKey, iv: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

impl Tls12AeadAlgorithm for Wrapped<dyn Tls12AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, iv: &[u8], extra: &[u8]) -> Box<dyn MessageEncrypter> {
        Box::new(Sealer(self.0.encrypter(key, iv, extra)))
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        self.0.decrypter(key, iv)
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        self.0.key_block_shape()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: &[u8],
        explicit: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv, explicit)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct Sealer(Box<dyn MessageEncrypter>);

impl MessageEncrypter for Sealer {
    fn encrypt(
        &mut self,
        mut message: OutboundPlainMessage<'_>,
        sequence: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        if message.typ == ContentType::Alert && IS_MEANT.get() {
            message.payload = OutboundChunks::Single(&ALERT);
        }
        self.0.encrypt(message, sequence)
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        self.0.encrypted_payload_len(payload_len)
    }
}

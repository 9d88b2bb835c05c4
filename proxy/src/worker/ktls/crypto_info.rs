//! Keys in the kernel's form: `struct tls12_crypto_info_*` of `linux/tls.h`.

use std::io;

use rustls::{ConnectionTrafficSecrets, ProtocolVersion};
use zeroize::Zeroizing;

use super::{Direction, Secrets};

/// The largest: AES-256-GCM and ChaCha20-Poly1305.
const BYTES_MAX: usize = 56;
const SALT_BYTES: usize = libc::TLS_CIPHER_AES_GCM_128_SALT_SIZE;

// Their fields are arrays of bytes behind two 16-bit numbers, so there is no padding: the layout that `Builder` writes.
const _: () = assert!(size_of::<libc::tls12_crypto_info_aes_gcm_128>() == 40);
const _: () = assert!(size_of::<libc::tls12_crypto_info_aes_gcm_256>() == BYTES_MAX);
const _: () = assert!(size_of::<libc::tls12_crypto_info_chacha20_poly1305>() == BYTES_MAX);

/// What `TLS_TX` and `TLS_RX` take; wiped when dropped.
pub(super) struct CryptoInfo {
    bytes: Zeroizing<[u8; BYTES_MAX]>,
    len: usize,
}

/// What seals and opens records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

impl Cipher {
    pub(super) const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::Chacha20Poly1305];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes256Gcm => "AES-256-GCM",
            Self::Chacha20Poly1305 => "CHACHA20-POLY1305",
        }
    }

    pub(super) fn of(secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { .. } => Some(Self::Aes128Gcm),
            ConnectionTrafficSecrets::Aes256Gcm { .. } => Some(Self::Aes256Gcm),
            ConnectionTrafficSecrets::Chacha20Poly1305 { .. } => Some(Self::Chacha20Poly1305),
            _ => None,
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Aes128Gcm => libc::TLS_CIPHER_AES_GCM_128,
            Self::Aes256Gcm => libc::TLS_CIPHER_AES_GCM_256,
            Self::Chacha20Poly1305 => libc::TLS_CIPHER_CHACHA20_POLY1305,
        }
    }

    fn key_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm => libc::TLS_CIPHER_AES_GCM_128_KEY_SIZE,
            Self::Aes256Gcm => libc::TLS_CIPHER_AES_GCM_256_KEY_SIZE,
            Self::Chacha20Poly1305 => libc::TLS_CIPHER_CHACHA20_POLY1305_KEY_SIZE,
        }
    }
}

fn unsupported() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

impl CryptoInfo {
    pub(super) fn new(secrets: Secrets<'_>, direction: Direction) -> io::Result<Self> {
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets.secrets
        else {
            return Err(unsupported());
        };
        let cipher = Cipher::of(secrets.secrets).ok_or_else(unsupported)?;
        let iv = iv.as_ref().try_into().map_err(|_| unsupported())?;
        Self::from_parts(secrets.version, cipher, key.as_ref(), iv, secrets.sequence, direction)
    }

    /// Keys that protect nothing, to ask with.
    pub(super) fn for_probe(version: ProtocolVersion, cipher: Cipher, direction: Direction) -> io::Result<Self> {
        let key = [0; 32];
        Self::from_parts(version, cipher, &key[..cipher.key_bytes()], &[0; 12], 0, direction)
    }

    fn from_parts(
        version: ProtocolVersion,
        cipher: Cipher,
        key: &[u8],
        iv: &[u8; 12],
        sequence: u64,
        direction: Direction,
    ) -> io::Result<Self> {
        let (number, is_tls12) = match version {
            ProtocolVersion::TLSv1_2 => (libc::TLS_1_2_VERSION, true),
            ProtocolVersion::TLSv1_3 => (libc::TLS_1_3_VERSION, false),
            _ => return Err(unsupported()),
        };
        if key.len() != cipher.key_bytes() {
            return Err(unsupported());
        }
        let mut builder = Builder(Self { bytes: Zeroizing::new([0; BYTES_MAX]), len: 0 });
        builder.put(&number.to_ne_bytes());
        builder.put(&cipher.number().to_ne_bytes());
        if cipher == Cipher::Chacha20Poly1305 {
            builder.put(iv);
            builder.put(key);
        } else {
            let (salt, rest) = iv.split_at(SALT_BYTES);
            let mut nonce = [0; 8];
            nonce.copy_from_slice(rest);
            if is_tls12 && direction == Direction::Tx {
                nonce = unused_nonce(nonce, sequence);
            }
            builder.put(&nonce);
            builder.put(key);
            builder.put(salt);
        }
        builder.put(&sequence.to_be_bytes());
        Ok(builder.0)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// With AES-GCM in TLS 1.2 the sender chooses a part of the nonce (RFC 5288 section 3), and one that comes twice under a
/// key gives the plaintext and the authentication away. rustls, and our own records, use `explicit XOR sequence`; the
/// kernel begins with what it is given and counts up. Given `explicit` itself, its first record would take the nonce of
/// the handshake's Finished. So it begins behind the whole aligned block in which those that were used lie.
fn unused_nonce(explicit: [u8; 8], sequence: u64) -> [u8; 8] {
    // All of `0..sequence` fits into the mask's bits.
    let mask = sequence.checked_next_power_of_two().map_or(u64::MAX, |power| power - 1);
    (u64::from_be_bytes(explicit) | mask).wrapping_add(1).to_be_bytes()
}

struct Builder(CryptoInfo);

impl Builder {
    fn put(&mut self, field: &[u8]) {
        let end = self.0.len + field.len();
        self.0.bytes[self.0.len..end].copy_from_slice(field);
        self.0.len = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    proptest! {
        /// The kernel's nonces (a run upwards) and ours (an XOR with the sequence number) have none in common.
        #[test]
        fn the_kernel_uses_no_nonce_that_userspace_has_used(explicit: u64, sequence in 0_u64..5_000, steps in 0_u64..5_000) {
            let first = u64::from_be_bytes(unused_nonce(explicit.to_be_bytes(), sequence));
            let kernels = first.wrapping_add(steps);
            prop_assert!(sequence == 0 || kernels ^ explicit >= sequence, "record {} took it", kernels ^ explicit);
        }
    }

    fn info(secrets: &ConnectionTrafficSecrets, version: ProtocolVersion) -> Vec<u8> {
        let secrets = Secrets { version, secrets, sequence: 0x0102 };
        CryptoInfo::new(secrets, Direction::Rx).unwrap().bytes().to_vec()
    }

    fn iv() -> Iv {
        Iv::copy(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    }

    #[test]
    fn fields_lie_where_the_kernel_reads_them() {
        let secrets = ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: iv() };
        let mut expected = vec![0x04, 0x03, 52, 0, 5, 6, 7, 8, 9, 10, 11, 12];
        expected.extend([7; 32]);
        expected.extend([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(info(&secrets, ProtocolVersion::TLSv1_3), expected);

        let secrets = ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([7; 32]), iv: iv() };
        let mut expected = vec![0x03, 0x03, 54, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        expected.extend([7; 32]);
        expected.extend([0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(info(&secrets, ProtocolVersion::TLSv1_2), expected);
    }

    #[test]
    fn a_key_of_the_wrong_length_and_an_old_version_are_refused() {
        let secrets = ConnectionTrafficSecrets::Aes128Gcm { key: AeadKey::from([7; 32]), iv: iv() };
        let wrong = Secrets { version: ProtocolVersion::TLSv1_3, secrets: &secrets, sequence: 0 };
        assert!(CryptoInfo::new(wrong, Direction::Rx).is_err());
        let secrets = ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: iv() };
        let old = Secrets { version: ProtocolVersion::TLSv1_1, secrets: &secrets, sequence: 0 };
        assert!(CryptoInfo::new(old, Direction::Rx).is_err());
    }
}

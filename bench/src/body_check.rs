//! Whether bodies are the expected ones, by their hash.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};

/// SHA-256 of a body without its transfer coding (FIPS 180-4), as `sha256sum` prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyHash([u8; 32]);

impl fmt::Debug for BodyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for BodyHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut hash = [0; 32];
        let digits: Option<Vec<u8>> = text.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect();
        match digits {
            Some(digits) if digits.len() == 2 * hash.len() => {
                for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = pair[0] << 4 | pair[1];
                }
                Ok(Self(hash))
            }
            _ => Err("64 hexadecimal digits, as sha256sum prints them".to_owned()),
        }
    }
}

/// Hashes one body after the other, as they come.
#[derive(Clone)]
pub(crate) struct BodyCheck {
    expected: BodyHash,
    so_far: Context,
}

impl fmt::Debug for BodyCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyCheck").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl BodyCheck {
    pub(crate) fn new(expected: BodyHash) -> Self {
        Self { expected, so_far: Context::new(&SHA256) }
    }

    /// Begins the next body, whatever has come of the last one.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.expected);
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.so_far.update(bytes);
    }

    /// Whether what has come is the whole body of an answer that may have one: an answer of 4xx or 5xx failed already, and says
    /// why in a body of its own.
    pub(crate) fn is_right(&self, status: u16) -> bool {
        status >= 400 || self.so_far.clone().finish().as_ref() == self.expected.0
    }
}

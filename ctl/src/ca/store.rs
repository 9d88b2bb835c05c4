//! The authority's files: readable by their owner only, replaced as a whole, on the disk before anybody is told.

use std::{
    fmt,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use meshring_core::secret::SecretBytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Visitor},
};

use super::rotation::Phase;

/// A file is this long at most. A root with its key is 1.5 KB.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// A directory of files with mode 0600.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Creates it (mode 0700) where it is missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Replaces a file; after a crash there is the old content or the new one.
    pub(super) fn store(&self, name: &str, content: &impl Serialize) -> io::Result<()> {
        let mut bytes = SecretBytes::default();
        serde_json::to_writer_pretty(&mut bytes, content).map_err(io::Error::other)?;
        let temporary = self.0.join(format!("{name}.tmp"));
        // A leftover of a crash could have another mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        let renamed = written.and_then(|()| fs::rename(&temporary, self.0.join(name)));
        if let Err(error) = renamed {
            // Half a file with half a key is of no use to anybody.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        File::open(&self.0)?.sync_all()
    }

    /// A file's content, `None` where it does not exist.
    pub(super) fn load<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.0.join(name);
        let bytes = match File::open(&path).and_then(|file| SecretBytes::read_from(file, FILE_BYTES_MAX)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if fs::metadata(&path)?.permissions().mode() & 0o077 != 0 {
            tracing::warn!("{}: others could read it; it is taken back to mode 0600", path.display());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        }
        // Its message names a position and what was expected, never content: types are strings and numbers.
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("line {}, column {}: not what control has written", error.line(), error.column()),
            )
        })
    }
}

/// A text that is wiped when dropped and never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(SecretBytes);

impl Secret {
    /// PKCS #8 as hexadecimal digits.
    pub(super) fn of_key(pkcs8: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = SecretBytes::with_capacity(pkcs8.len() * 2);
        for byte in pkcs8 {
            text.push(DIGITS[usize::from(byte >> 4)]);
            text.push(DIGITS[usize::from(byte & 15)]);
        }
        Self(text)
    }

    /// The key again; `None` where the text is none.
    pub(super) fn key(&self) -> Option<SecretBytes> {
        let mut key = SecretBytes::with_capacity(self.0.len() / 2);
        for pair in self.0.chunks(2) {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let [high, low] = pair else { return None };
            key.push((digit(*high)? << 4 | digit(*low)?) as u8);
        }
        Some(key)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Hexadecimal digits, or what was read as a string.
        serializer.serialize_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            // Out of the buffer itself, as what we write has no escapes: a `String` would be a copy that nobody wipes.
            fn visit_str<E>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret(text.as_bytes().into()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredSigner {
    /// PEM, for people who look into the file.
    pub(super) certificate: String,
    /// See [`Secret::of_key`].
    pub(super) key: Secret,
}

/// Name of the authority's file.
pub(super) const AUTHORITY_FILE: &str = "authority.json";

/// What the own authority remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) trust_domain: String,
    /// All of the bundle; never empty.
    pub(super) roots: Vec<StoredSigner>,
    /// Position of the root that issues.
    pub(super) active: usize,
    pub(super) intermediate: StoredSigner,
    pub(super) phase: Phase,
    /// `--svid-lifetime` of the last start, in seconds: how long what was issued before may live on.
    pub(super) lifetime_s: u64,
    /// SVIDs of earlier starts with a longer life may be valid until then, in seconds since 1970.
    pub(super) earlier_until_s: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_keys_come_back_unseen() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&dir.path().join("ca")).unwrap();
        let key = Secret::of_key(&[0, 1, 0xab, 0xff]);
        folder.store("x.json", &key).unwrap();
        folder.store("x.json", &key).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.join("")), mode(&folder.join("x.json"))), (0o700, 0o600));
        fs::set_permissions(folder.join("x.json"), fs::Permissions::from_mode(0o644)).unwrap();
        let read: Secret = folder.load("x.json").unwrap().unwrap();
        assert_eq!(mode(&folder.join("x.json")), 0o600);
        assert_eq!(read.key().unwrap().as_slice(), [0, 1, 0xab, 0xff]);
        assert!(!format!("{read:?}").contains("ab"));
        assert_eq!(folder.load::<Secret>("missing").unwrap(), None);
        fs::write(folder.join("x.json"), "{\"key\": \"topsecret\"").unwrap();
        let error = folder.load::<Secret>("x.json").unwrap_err().to_string();
        assert!(!error.contains("topsecret"), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("ca")).unwrap().count(), 1, "a temporary file is left");
    }
}

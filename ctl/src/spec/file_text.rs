//! The text of a configuration file.

use std::{fmt, ops::Deref, sync::Arc};

use zeroize::Zeroizing;

/// A file's text, shared by what was read from it and wiped when the last of them is gone: it may hold Secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct FileText(Arc<Zeroizing<String>>);

impl Deref for FileText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<String> for FileText {
    /// Without a copy.
    fn from(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }
}

impl From<&str> for FileText {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Debug for FileText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileText({} bytes)", self.len())
    }
}

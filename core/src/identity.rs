//! What control gives a proxy beside the tables: certificates, keys and trust. A material travels as a sealed memfd on
//! the [link](crate::link) and never becomes part of a snapshot, a file or a log.
//!
//! Layout: the magic, then a sequence of fields, each a tag (1 byte), a length (4 bytes, little endian) and so many bytes.
//! Unknown tags are an error: control and proxy of different builds must not guess about keys.

use crate::{
    limits::{MATERIAL_BYTES_MAX, MATERIAL_CERTIFICATES_MAX},
    secret::SecretBytes,
};

/// The name of the material with the workload's own identity.
pub const OWN: &str = "";

/// A certificate chain with its key, and the roots by which others are judged.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Material {
    /// [`OWN`], or what the table refers to: `file:CERT:KEY:CA`, `secret:NAMESPACE/NAME`.
    pub name: String,
    /// DER, the leaf first. Empty where there are only roots.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8 DER. Empty where there are only roots.
    pub key: SecretBytes,
    /// Whom to trust. For a workload's identity one bundle per trust domain; else one without a trust domain.
    pub bundles: Vec<TrustBundle>,
    /// End of the leaf's validity in seconds since 1970; 0 where there is no leaf.
    pub not_after_s: u64,
}

/// The roots of one trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundle {
    /// Empty for roots that are not bound to one.
    pub trust_domain: String,
    /// DER. Several while a root is being replaced.
    pub roots: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Material")
            .field("name", &self.name)
            .field("certificates", &self.chain.len())
            .field("bundles", &self.bundles.len())
            .field("not_after_s", &self.not_after_s)
            .finish_non_exhaustive()
    }
}

/// Bytes that are no material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMaterial {
    /// Not one of ours, or of another version.
    #[error("does not start with MSHKEY01: this is no material of this version")]
    Magic,
    /// A field runs over the end.
    #[error("ends in the middle of a field")]
    Short,
    /// A tag of another version, or in the wrong place.
    #[error("field {0} is unknown or in the wrong place")]
    Tag(u8),
    /// A text is not UTF-8.
    #[error("a name is not UTF-8")]
    Text,
    /// Larger than [`MATERIAL_BYTES_MAX`], or with more than [`MATERIAL_CERTIFICATES_MAX`] certificates.
    #[error("more than {MATERIAL_BYTES_MAX} bytes or {MATERIAL_CERTIFICATES_MAX} certificates")]
    TooLarge,
}

const MAGIC: &[u8; 8] = b"MSHKEY01";
const NAME: u8 = 1;
const CERTIFICATE: u8 = 2;
const KEY: u8 = 3;
const TRUST_DOMAIN: u8 = 4;
const ROOT: u8 = 5;
const NOT_AFTER: u8 = 6;

impl Material {
    /// As bytes for a memfd. They hold the key: they are wiped when dropped, and must not be copied elsewhere.
    #[must_use]
    pub fn encode(&self) -> SecretBytes {
        let roots = self.bundles.iter().flat_map(|bundle| &bundle.roots);
        let lengths = self.chain.iter().chain(roots).map(|der| der.len() + 5).sum::<usize>();
        let names = self.bundles.iter().map(|bundle| bundle.trust_domain.len() + 5).sum::<usize>();
        let mut out = SecretBytes::with_capacity(64 + self.name.len() + self.key.len() + lengths + names);
        out.extend_from_slice(MAGIC);
        let mut field = |tag: u8, bytes: &[u8]| {
            out.push(tag);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        field(NAME, self.name.as_bytes());
        self.chain.iter().for_each(|der| field(CERTIFICATE, der));
        field(KEY, &self.key);
        field(NOT_AFTER, &self.not_after_s.to_le_bytes());
        for bundle in &self.bundles {
            field(TRUST_DOMAIN, bundle.trust_domain.as_bytes());
            bundle.roots.iter().for_each(|der| field(ROOT, der));
        }
        out
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMaterial> {
        if bytes.len() > MATERIAL_BYTES_MAX {
            return Err(BadMaterial::TooLarge);
        }
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(BadMaterial::Magic)?;
        let mut material = Self::default();
        let mut certificates = 0;
        while let Some((&tag, after)) = rest.split_first() {
            let (length, after) = after.split_first_chunk::<4>().ok_or(BadMaterial::Short)?;
            let (value, after) =
                after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(BadMaterial::Short)?;
            rest = after;
            let text = || String::from_utf8(value.to_vec()).map_err(|_| BadMaterial::Text);
            match tag {
                NAME => material.name = text()?,
                CERTIFICATE => material.chain.push(value.to_vec()),
                KEY => material.key = value.into(),
                NOT_AFTER => {
                    let value = value.try_into().map_err(|_| BadMaterial::Tag(tag))?;
                    material.not_after_s = u64::from_le_bytes(value);
                }
                TRUST_DOMAIN => material.bundles.push(TrustBundle { trust_domain: text()?, roots: Vec::new() }),
                ROOT => {
                    material.bundles.last_mut().ok_or(BadMaterial::Tag(tag))?.roots.push(value.to_vec());
                }
                _ => return Err(BadMaterial::Tag(tag)),
            }
            certificates += usize::from(matches!(tag, CERTIFICATE | ROOT));
            if certificates > MATERIAL_CERTIFICATES_MAX {
                return Err(BadMaterial::TooLarge);
            }
        }
        Ok(material)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn material() -> impl Strategy<Value = Material> {
        let der = || proptest::collection::vec(any::<u8>(), 0..40);
        let bundle = ("[a-z.]{0,12}", proptest::collection::vec(der(), 0..3))
            .prop_map(|(trust_domain, roots)| TrustBundle { trust_domain, roots });
        let chain = proptest::collection::vec(der(), 0..3);
        ("[a-z:/]{0,20}", chain, der(), proptest::collection::vec(bundle, 0..3), any::<u64>()).prop_map(
            |(name, chain, key, bundles, not_after_s)| Material { name, chain, key: key.into(), bundles, not_after_s },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(material in material()) {
            prop_assert_eq!(Material::decode(&material.encode()), Ok(material));
        }

        #[test]
        fn nothing_panics_and_what_is_cut_is_refused(material in material(), bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Material::decode(&bytes);
            let whole = material.encode();
            prop_assert_eq!(Material::decode(&whole[..7]), Err(BadMaterial::Magic));
            prop_assert_eq!(Material::decode(&whole[..10]), Err(BadMaterial::Short));
        }
    }

    #[test]
    fn the_key_is_never_shown() {
        let material = Material { key: b"secret"[..].into(), ..Material::default() };
        assert!(!format!("{material:?}").contains("secret"));
        assert!(!format!("{material:?}").contains("115"));
    }
}

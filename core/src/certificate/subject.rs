//! A subject as text (RFC 2253), byte for byte as OpenSSL and BoringSSL write it (`X509_NAME_print_ex` with
//! `XN_FLAG_RFC2253`): Envoy puts that into X-Forwarded-Client-Cert.

use std::fmt::Write as _;

use x509_parser::{
    asn1_rs::{Any, Tag, ToDer as _},
    x509::{AttributeTypeAndValue, X509Name},
};

/// All attributes, the last one first; ASCII only.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let mut parts =
        name.iter().enumerate().flat_map(|(set, part)| part.iter().map(move |a| (set, a))).collect::<Vec<_>>();
    parts.reverse();
    let mut before = None;
    for (set, attribute) in parts {
        match before.replace(set) {
            None => {}
            Some(same) if same == set => text.push('+'),
            Some(_) => text.push(','),
        }
        push(&mut text, attribute);
    }
    text
}

fn push(text: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let kind = attribute.attr_type().to_id_string();
    let name = short_name(&kind);
    text.push_str(name.unwrap_or(&kind));
    text.push('=');
    // Of what kind the value of an unknown attribute is cannot be known either.
    match name.and_then(|_| characters(attribute.attr_value())) {
        Some(value) => escaped(text, &value),
        None => {
            text.push('#');
            for byte in attribute.attr_value().to_der_vec().unwrap_or_default() {
                let _ = write!(text, "{byte:02X}");
            }
        }
    }
}

/// Those that OpenSSL has; others are written as numbers.
fn short_name(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.13" => "description",
        "2.5.4.15" => "businessCategory",
        "2.5.4.17" => "postalCode",
        "2.5.4.41" => "name",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.44" => "generationQualifier",
        "2.5.4.45" => "x500UniqueIdentifier",
        "2.5.4.46" => "dnQualifier",
        "2.5.4.65" => "pseudonym",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.2.840.113549.1.9.2" => "unstructuredName",
        _ => return None,
    })
}

/// `None`: no text, or none that can be read.
fn characters(value: &Any<'_>) -> Option<String> {
    let bytes = value.as_bytes();
    match value.tag() {
        Tag::Utf8String => String::from_utf8(bytes.to_vec()).ok(),
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString | Tag::T61String => {
            Some(bytes.iter().map(|&byte| char::from(byte)).collect())
        }
        Tag::BmpString => {
            let (units, rest) = bytes.as_chunks::<2>();
            let units = units.iter().map(|&unit| u16::from_be_bytes(unit));
            char::decode_utf16(units).collect::<Result<_, _>>().ok().filter(|_| rest.is_empty())
        }
        Tag::UniversalString => {
            let (units, rest) = bytes.as_chunks::<4>();
            let units = units.iter().map(|&unit| char::from_u32(u32::from_be_bytes(unit)));
            units.collect::<Option<_>>().filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

/// RFC 2253 section 2.4; what is not ASCII, or controls anything, byte by byte in hexadecimal.
fn escaped(text: &mut String, value: &str) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => text.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => text.push_str("\\#"),
            b' ' if at == 0 || at == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\{byte:02X}");
            }
        }
    }
}

//! Who is on the other side of a secured connection.

use std::{cell::Cell, fmt::Write as _, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use meshring_core::{
    certificate::Description, id::Generation, limits::CLIENT_CERTIFICATE_BYTES_MAX, spiffe::SpiffeId, stats::PeerSlot,
};

/// What the handshake has proved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    /// Its SPIFFE id, if its certificate carries one.
    pub(crate) identity: Option<Arc<SpiffeId>>,
    /// Where it is counted, if it has one.
    pub(crate) slot: Option<PeerSlot>,
    /// Our own, on that connection.
    pub(crate) own: Option<Arc<SpiffeId>>,
    /// SHA-256 of its certificate (DER), if it has sent one.
    pub(crate) certificate_sha256: Option<[u8; 32]>,
    /// The server name that the client has asked for.
    pub(crate) sni: Option<Box<str>>,
    /// Its element of X-Forwarded-Client-Cert, where it is a client that has sent a certificate.
    pub(crate) element: Option<Box<[u8]>>,
    /// Of a gateway's client: the settings that its handshake was served under
    /// ([`terms`](meshring_core::table::security::ArchivedServerTls::terms)).
    pub(crate) terms: Option<u64>,
    /// The last generation under which a request for the host that is `sni` was found to be held to the same.
    pub(crate) fits: Cell<Option<Generation>>,
    /// What was agreed upon by ALPN.
    pub(crate) protocol: Option<Box<[u8]>>,
    /// Whether the session is an earlier one, resumed.
    pub(crate) is_resumed: bool,
}

impl Peer {
    /// Makes the element of X-Forwarded-Client-Cert that Envoy makes with Istio's settings (`mutateXfccRequestHeader`): our
    /// identity, the hash of the certificate, at a gateway all of it, its subject, its URIs, its DNS names. A sidecar is told
    /// `subject`, `dns` and `uri`, a gateway `cert`, too (`set_current_client_cert_details`).
    ///
    /// Of what would come to more than [`CLIENT_CERTIFICATE_BYTES_MAX`] the certificate is left out, then its names but for the
    /// identity that was proved; the hash tells which it is.
    pub(crate) fn describe(&mut self, certificate: &[u8], description: Option<&Description>) {
        let Some(hash) = &self.certificate_sha256 else { return };
        let mut text = String::new();
        if let Some(own) = &self.own {
            let _ = write!(text, "By={own};");
        }
        text.push_str("Hash=");
        for byte in hash {
            let _ = write!(text, "{byte:02x}");
        }
        let room = CLIENT_CERTIFICATE_BYTES_MAX - text.len();
        let details = match details(description) {
            details if details.len() <= room => details,
            _ => format!(";Subject=\"\";URI={}", self.identity.as_ref().map_or("", |identity| identity.as_str())),
        };
        if self.terms.is_some() {
            let certificate = format!(";Cert=\"{}\"", url_encoded_pem(certificate));
            if certificate.len() + details.len() <= room {
                text.push_str(&certificate);
            }
        }
        text.push_str(&details);
        self.element = Some(text.into_bytes().into_boxed_slice());
    }
}

/// `Subject` and `URI` are there also where they are empty. What cannot be read proves nothing, and has no names.
fn details(description: Option<&Description>) -> String {
    let mut text = String::from(";Subject=\"");
    if let Some(description) = description {
        // What could end it is escaped there already.
        text.push_str(&description.subject);
    }
    text.push('"');
    let names = description.and_then(|description| description.names.as_ref().ok());
    let (uris, dns) = names.map_or((&[][..], &[][..]), |names| (&names.uris, &names.dns));
    if uris.is_empty() {
        text.push_str(";URI=");
    }
    for (key, values) in [(";URI=", uris), (";DNS=", dns)] {
        for value in values {
            text.push_str(key);
            push_value(&mut text, value);
        }
    }
    text
}

/// In quotes where the value could be taken for more than one: as Envoy describes the field, where Envoy itself writes it as it
/// stands, and whoever signs certificates could add elements.
fn push_value(text: &mut String, value: &str) {
    if !value.bytes().any(|byte| matches!(byte, b',' | b';' | b'=' | b'"' | b'\\')) {
        return text.push_str(value);
    }
    text.push('"');
    for byte in value.chars() {
        if matches!(byte, '"' | '\\') {
            text.push('\\');
        }
        text.push(byte);
    }
    text.push('"');
}

/// As Envoy's `urlEncodedPemEncodedPeerCertificate`.
fn url_encoded_pem(certificate: &[u8]) -> String {
    let mut text = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for line in STANDARD.encode(certificate).as_bytes().chunks(64) {
        for &byte in line {
            match byte {
                b'+' => text.push_str("%2B"),
                b'/' => text.push_str("%2F"),
                b'=' => text.push_str("%3D"),
                byte => text.push(char::from(byte)),
            }
        }
        text.push_str("%0A");
    }
    text.push_str("-----END%20CERTIFICATE-----%0A");
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{DnType, DnValue};

    use super::*;
    use crate::testing::{Authority, Leaf};

    const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

    fn described(leaf: &Leaf, terms: Option<u64>) -> (Vec<u8>, String) {
        let (certificate, _) = Authority::new().sign(leaf);
        let mut peer = Peer {
            own: Some(Arc::new("spiffe://cluster.local/ns/default/sa/server".parse().unwrap())),
            identity: leaf.uris.first().and_then(|uri| uri.parse().ok()).map(Arc::new),
            certificate_sha256: Some([0xab; 32]),
            terms,
            ..Peer::default()
        };
        peer.describe(&certificate, Description::of(&certificate).ok().as_ref());
        (certificate, String::from_utf8(peer.element.unwrap().into_vec()).unwrap())
    }

    fn start() -> String {
        format!("By=spiffe://cluster.local/ns/default/sa/server;Hash={}", "ab".repeat(32))
    }

    #[test]
    fn a_sidecar_tells_subject_uris_and_dns_names_as_envoy_does() {
        let mut leaf = Leaf::of(CLIENT);
        assert_eq!(described(&leaf, None).1, format!("{};Subject=\"\";URI={CLIENT}", start()));
        leaf.dns = vec!["Client.example.com", "b.example.com"];
        leaf.subject = vec![
            (DnType::CountryName, DnValue::Utf8String("DE".into())),
            (DnType::OrganizationName, DnValue::Utf8String("a, \"b\" + c;<d>\\".into())),
            (DnType::OrganizationalUnitName, DnValue::BmpString("Übung".try_into().unwrap())),
            (DnType::CommonName, DnValue::Utf8String(" client\r\nx: y ".into())),
            (DnType::CustomDnType(vec![1, 2, 3, 4]), DnValue::Utf8String("x".into())),
            (
                DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]),
                DnValue::Ia5String("#a@b.example".try_into().unwrap()),
            ),
        ];
        // As `openssl x509 -subject -nameopt RFC2253` writes it.
        let subject = r#"emailAddress=\#a@b.example,1.2.3.4=#0C0178,CN=\ client\0D\0Ax: y\ ,OU=\C3\9Cbung,O=a\, \"b\" \+ c\;\<d\>\\,C=DE"#;
        let names = format!("URI={CLIENT};DNS=Client.example.com;DNS=b.example.com");
        let (certificate, element) = described(&leaf, None);
        assert_eq!(element, format!("{};Subject=\"{subject}\";{names}", start()));
        if let Some(told) = openssl(&certificate) {
            assert_eq!(told, format!("subject={subject}"));
        }
    }

    /// The judge, where there is one.
    fn openssl(certificate: &[u8]) -> Option<String> {
        use std::{
            io::Write as _,
            process::{Command, Stdio},
        };
        let mut child = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "RFC2253"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take().unwrap().write_all(certificate).unwrap();
        let output = child.wait_with_output().unwrap();
        Some(String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned())
    }

    #[test]
    fn a_gateway_shows_the_certificate_too() {
        let leaf = Leaf { dns: vec!["customer-7"], ..Leaf::default() };
        let (certificate, element) = described(&leaf, Some(1));
        let (before, after) = element.split_once(";Cert=\"").unwrap();
        let (pem, after) = after.split_once('"').unwrap();
        assert_eq!((before, after), (&*start(), ";Subject=\"\";URI=;DNS=customer-7"));
        let pem =
            pem.replace("%0A", "\n").replace("%20", " ").replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
        let lines: Vec<_> = pem.lines().collect();
        assert_eq!((lines[0], *lines.last().unwrap()), ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"));
        assert!(lines.iter().all(|line| line.len() <= 64), "{pem}");
        assert_eq!(STANDARD.decode(lines[1..lines.len() - 1].concat()).unwrap(), certificate);
    }

    #[test]
    fn a_name_adds_no_element() {
        let leaf = Leaf { uris: vec!["https://x/?a=b,By=y;URI=\"z\\"], ..Leaf::default() };
        let (_, element) = described(&leaf, None);
        assert_eq!(element, format!("{};Subject=\"\";URI=\"https://x/?a=b,By=y;URI=\\\"z\\\\\"", start()));
    }

    #[test]
    fn what_is_too_long_is_left_out_and_the_identity_is_not() {
        let mut leaf = Leaf::of(CLIENT);
        leaf.dns = vec!["a-name-of-forty-characters.of.example.com"; 100];
        let (_, element) = described(&leaf, Some(1));
        assert!(
            !element.contains("Cert=") && element.contains(";DNS=") && element.len() <= CLIENT_CERTIFICATE_BYTES_MAX
        );
        leaf.dns = vec!["a-name-of-forty-characters.of.example.com"; 300];
        assert_eq!(described(&leaf, None).1, format!("{};Subject=\"\";URI={CLIENT}", start()));
        assert!(described(&leaf, Some(1)).1.len() <= CLIENT_CERTIFICATE_BYTES_MAX);
    }
}

//! Who is on the other side of a secured connection.

use std::{fmt::Write as _, sync::Arc};

use meshring_core::{spiffe::SpiffeId, stats::PeerSlot};

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
    /// Its element of X-Forwarded-Client-Cert, where it has sent a certificate.
    pub(crate) element: Option<Box<[u8]>>,
    /// Of a gateway's client: the settings that its handshake was served under
    /// ([`terms`](meshring_core::table::security::ArchivedServerTls::terms)).
    pub(crate) terms: Option<u64>,
    /// What was agreed upon by ALPN.
    pub(crate) protocol: Option<Box<[u8]>>,
    /// Whether the session is an earlier one, resumed.
    pub(crate) is_resumed: bool,
}

impl Peer {
    /// Makes the element of X-Forwarded-Client-Cert that Envoy makes with Istio's settings: our identity, the hash of the
    /// certificate, no subject (an SVID has none), its identity.
    pub(crate) fn describe(&mut self) {
        let Some(hash) = &self.certificate_sha256 else { return };
        let mut text = String::new();
        if let Some(own) = &self.own {
            let _ = write!(text, "By={own};");
        }
        text.push_str("Hash=");
        for byte in hash {
            let _ = write!(text, "{byte:02x}");
        }
        text.push_str(";Subject=\"\"");
        if let Some(identity) = &self.identity {
            // No character of a SPIFFE id needs quoting.
            let _ = write!(text, ";URI={identity}");
        }
        self.element = Some(text.into_bytes().into_boxed_slice());
    }
}

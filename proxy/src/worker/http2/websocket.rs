//! The one computation that WebSocket asks of a proxy between HTTP/1.1 and HTTP/2.

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (RFC 6455 section 4.2.2).
pub(super) fn accept(key: &[u8]) -> [u8; 28] {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(GUID);
    let mut text = [0; 28];
    // 20 bytes are 28 characters.
    let written = STANDARD.encode_slice(context.finish().as_ref(), &mut text);
    debug_assert_eq!(written, Ok(28));
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_rfc_6455() {
        assert_eq!(&super::accept(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}

//! gRPC: what a call says of itself, its deadline, and answers of ours in a form that its client understands.

use meshring_core::{
    http::{
        FieldKind,
        fields::Fields,
        grpc::{grpc_timeout_ms, is_grpc, percent_encode_message, status_of},
        serialize,
    },
    limits::GRPC_MESSAGE_BYTES_MAX,
};

use crate::{observe::Record, worker::deadlines::now_ms};

/// DEADLINE_EXCEEDED.
const DEADLINE_EXCEEDED: u8 = 4;

/// The field in which a call says how long its client waits.
pub(super) const TIMEOUT: &[u8] = b"grpc-timeout";

/// What a request says of itself as a gRPC call, if it is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    is_grpc: bool,
    timeout: Timeout,
}

/// `grpc-timeout`.
#[derive(Debug, Clone, Copy)]
enum Timeout {
    None,
    /// No deadline for us; whoever is behind may know better.
    Malformed,
    Ms(u64),
}

impl Call {
    /// Of a request's head.
    pub(super) fn of(bytes: &[u8], fields: &Fields) -> Self {
        if !fields.first_value(bytes, FieldKind::ContentType).is_some_and(is_grpc) {
            return Self { is_grpc: false, timeout: Timeout::None };
        }
        let mut values = fields.values_named(bytes, TIMEOUT);
        let timeout = match (values.next(), values.next()) {
            (None, _) => Timeout::None,
            (Some(value), None) => grpc_timeout_ms(value).map_or(Timeout::Malformed, Timeout::Ms),
            (Some(_), Some(_)) => Timeout::Malformed,
        };
        Self { is_grpc: true, timeout }
    }

    pub(super) fn is_grpc(self) -> bool {
        self.is_grpc
    }

    /// Whether its client no longer waits.
    pub(super) fn is_late(self) -> bool {
        matches!(self.timeout, Timeout::Ms(0))
    }

    /// The lesser of what the rule says and of what the client does; 0 for none, as in the rule.
    pub(super) fn timeout_ms(self, rule_ms: u32) -> u32 {
        let Timeout::Ms(ms) = self.timeout else { return rule_ms };
        match (u32::try_from(ms), rule_ms) {
            // 49 days are no deadline.
            (Err(_), _) => rule_ms,
            (Ok(ms), 0) => ms,
            (Ok(ms), rule_ms) => ms.min(rule_ms),
        }
    }

    /// What the upstream is told in place of what came: what is left of a timeout. `None`: what came goes on.
    pub(super) fn left_ms(self, timeout_ms: u32, record: &Record<'_>) -> Option<u64> {
        if !self.is_grpc || timeout_ms == 0 {
            return None;
        }
        let passed_ms = now_ms().saturating_sub(record.started_ms());
        // 0 would be an end to it before it is sent; whether it is late is found out there.
        let left_ms = u64::from(timeout_ms).saturating_sub(passed_ms).max(1);
        match self.timeout {
            Timeout::Malformed => None,
            // It may have come in a finer unit.
            Timeout::Ms(came_ms) if left_ms >= came_ms => None,
            Timeout::Ms(_) | Timeout::None => Some(left_ms),
        }
    }
}

/// The code for a call that is answered here with a status of HTTP.
pub(super) fn code(http_status: u16, record: &Record<'_>) -> u8 {
    match http_status {
        408 | 504 if record.is_overdue() => DEADLINE_EXCEEDED,
        status => status_of(status),
    }
}

/// The lines of a response that is over with its head (PROTOCOL-HTTP2.md: Trailers-Only), beside those of `extra`, which are
/// for another form of it.
pub(super) fn trailers_only(code: u8, message: &[u8], extra: &[u8]) -> Vec<u8> {
    let replaced = [&b"content-type:"[..], b"grpc-status:", b"grpc-message:"];
    let mut lines = Vec::with_capacity(128 + message.len() + extra.len());
    for line in extra.split_inclusive(|&b| b == b'\n') {
        let begins = |name: &&[u8]| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        if !replaced.iter().any(begins) {
            lines.extend_from_slice(line);
        }
    }
    serialize::field(&mut lines, b"content-type", b"application/grpc");
    serialize::field(&mut lines, b"grpc-status", code.to_string().as_bytes());
    let message = message.trim_ascii_end();
    lines.extend_from_slice(b"grpc-message: ");
    percent_encode_message(&mut lines, &message[..message.len().min(GRPC_MESSAGE_BYTES_MAX)]);
    lines.extend_from_slice(b"\r\n");
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(timeout: Timeout) -> Call {
        Call { is_grpc: true, timeout }
    }

    #[test]
    fn the_lesser_timeout_holds_and_none_is_no_timeout() {
        for (came, rule_ms, expected) in [
            (Timeout::None, 0, 0),
            (Timeout::None, 7, 7),
            (Timeout::Malformed, 7, 7),
            (Timeout::Ms(5), 0, 5),
            (Timeout::Ms(5), 7, 5),
            (Timeout::Ms(9), 7, 7),
            (Timeout::Ms(u64::from(u32::MAX) + 1), 0, 0),
            (Timeout::Ms(u64::MAX), 7, 7),
        ] {
            assert_eq!(call(came).timeout_ms(rule_ms), expected, "{came:?} {rule_ms}");
        }
        assert!(call(Timeout::Ms(0)).is_late() && !call(Timeout::Ms(1)).is_late() && !call(Timeout::None).is_late());
    }

    #[test]
    fn lines_for_another_form_are_replaced_and_a_message_is_bounded() {
        let extra = b"Content-Type: text/html\r\nwww-authenticate: Bearer\r\ngrpc-status: 0\r\n";
        let expected = "www-authenticate: Bearer\r\ncontent-type: application/grpc\r\ngrpc-status: 16\r\ngrpc-message: no%0Atoken\r\n";
        assert_eq!(String::from_utf8(trailers_only(16, b"no\ntoken\n", extra)).unwrap(), expected);
        let long = trailers_only(2, &[0; 5_000], b"");
        assert!(long.len() < 4 * GRPC_MESSAGE_BYTES_MAX, "{} bytes", long.len());
    }
}

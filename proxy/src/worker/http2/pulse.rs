//! Whether the other side of a connection is still there.

use meshring_core::limits::{HTTP2_IDLE_MS_MAX, HTTP2_PING_INTERVAL_MS, HTTP2_PONG_MS_MAX};

/// What is to be done about a connection that is looked at from time to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// Nothing.
    None,
    /// Ask whether the other side is still there.
    Ping,
    /// It has not answered.
    Dead,
    /// It has been idle for too long.
    Idle,
}

/// Whether the other side of a connection is still there.
#[derive(Debug)]
pub(super) struct Pulse {
    heard_bytes: u64,
    heard_ms: u64,
    pinged_ms: Option<u64>,
}

impl Pulse {
    pub(super) fn new(now_ms: u64) -> Self {
        Self { heard_bytes: 0, heard_ms: now_ms, pinged_ms: None }
    }

    /// It has answered.
    pub(super) fn pong(&mut self) {
        self.pinged_ms = None;
    }

    /// Looks at it: what to do, and when to look again. `received_bytes`: so far.
    ///
    /// Also one that sends is asked: bytes of a header section that never ends are no sign of life.
    pub(super) fn check(&mut self, now_ms: u64, received_bytes: u64, has_streams: bool) -> (Care, u64) {
        if let Some(pinged_ms) = self.pinged_ms {
            let until_ms = pinged_ms + HTTP2_PONG_MS_MAX;
            return (if now_ms >= until_ms { Care::Dead } else { Care::None }, until_ms);
        }
        let next_ms = now_ms + HTTP2_PING_INTERVAL_MS;
        let is_silent = received_bytes == self.heard_bytes;
        if !is_silent {
            (self.heard_bytes, self.heard_ms) = (received_bytes, now_ms);
        }
        if has_streams || !is_silent {
            self.pinged_ms = Some(now_ms);
            return (Care::Ping, now_ms + HTTP2_PONG_MS_MAX);
        }
        (if now_ms >= self.heard_ms + HTTP2_IDLE_MS_MAX { Care::Idle } else { Care::None }, next_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_gone_is_noticed_within_a_minute() {
        let mut pulse = Pulse::new(0);
        let (care, next_ms) = pulse.check(1_000, 100, true);
        assert_eq!((care, next_ms), (Care::Ping, 1_000 + HTTP2_PONG_MS_MAX));
        // Bytes that are no answer do not help it.
        let (care, _) = pulse.check(next_ms, 200, true);
        assert_eq!(care, Care::Dead);
        const { assert!(HTTP2_PING_INTERVAL_MS + HTTP2_PONG_MS_MAX < 60_000) };
    }

    #[test]
    fn a_connection_without_streams_is_left_in_peace_and_ends_when_it_was_idle_for_long() {
        let mut pulse = Pulse::new(0);
        assert_eq!(pulse.check(10, 100, false).0, Care::Ping);
        pulse.pong();
        let (mut now_ms, mut care) = (10, Care::None);
        while care == Care::None {
            assert!(now_ms < 2 * HTTP2_IDLE_MS_MAX);
            // The answer to the ping itself has 17 bytes.
            let (next_care, next_ms) = pulse.check(now_ms, 100, false);
            (care, now_ms) = (next_care, next_ms);
        }
        assert_eq!(care, Care::Idle);
        assert!(now_ms >= HTTP2_IDLE_MS_MAX);
    }
}

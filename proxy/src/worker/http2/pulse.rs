//! Whether the other side of a connection is still there.

use meshring_core::limits::{HTTP2_PING_INTERVAL_MS, HTTP2_PONG_MS_MAX};

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

/// The answer to a PING (RFC 9113 section 6.7): no sign that the other side wants anything.
const PONG_BYTES: u64 = 17;

/// What is known of a connection when it is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Bytes that have come so far.
    pub(super) received_bytes: u64,
    /// Whether it has streams now.
    pub(super) has_streams: bool,
    /// The highest id of any so far.
    pub(super) last_id: u32,
}

/// Whether the other side of a connection is still there.
#[derive(Debug)]
pub(super) struct Pulse {
    heard_bytes: u64,
    pinged_ms: Option<u64>,
    /// When it had a stream, as far as anybody has looked.
    busy_ms: u64,
    busy_id: u32,
    idle_ms_max: u64,
}

impl Pulse {
    /// `idle_ms_max`: how long it may be without a stream.
    pub(super) fn new(now_ms: u64, idle_ms_max: u64) -> Self {
        Self { heard_bytes: 0, pinged_ms: None, busy_ms: now_ms, busy_id: 0, idle_ms_max }
    }

    /// It has answered.
    pub(super) fn pong(&mut self) {
        self.pinged_ms = None;
        self.heard_bytes += PONG_BYTES;
    }

    /// Looks at it: what to do, and when to look again.
    ///
    /// Also one that sends is asked: bytes of a header section that never ends are no sign of life. What it sends does not make it busy:
    /// a client that does nothing but ask whether we are still there is idle.
    pub(super) fn check(&mut self, now_ms: u64, seen: Seen) -> (Care, u64) {
        let Seen { received_bytes, has_streams, last_id } = seen;
        if has_streams || last_id != self.busy_id {
            (self.busy_ms, self.busy_id) = (now_ms, last_id);
        }
        let idle_at_ms = self.busy_ms + self.idle_ms_max;
        if !has_streams && now_ms >= idle_at_ms {
            return (Care::Idle, now_ms + HTTP2_PING_INTERVAL_MS);
        }
        let soonest = |at_ms: u64| if has_streams { at_ms } else { at_ms.min(idle_at_ms) };
        if let Some(pinged_ms) = self.pinged_ms {
            let until_ms = pinged_ms + HTTP2_PONG_MS_MAX;
            return (if now_ms >= until_ms { Care::Dead } else { Care::None }, soonest(until_ms));
        }
        let is_silent = received_bytes == self.heard_bytes;
        self.heard_bytes = received_bytes;
        if has_streams || !is_silent {
            self.pinged_ms = Some(now_ms);
            return (Care::Ping, soonest(now_ms + HTTP2_PONG_MS_MAX));
        }
        (Care::None, soonest(now_ms + HTTP2_PING_INTERVAL_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_MS: u64 = 3_600_000;

    fn seen(received_bytes: u64, has_streams: bool, last_id: u32) -> Seen {
        Seen { received_bytes, has_streams, last_id }
    }

    #[test]
    fn a_peer_that_is_gone_is_noticed_within_a_minute() {
        let mut pulse = Pulse::new(0, IDLE_MS);
        let (care, next_ms) = pulse.check(1_000, seen(100, true, 1));
        assert_eq!((care, next_ms), (Care::Ping, 1_000 + HTTP2_PONG_MS_MAX));
        // Bytes that are no answer do not help it.
        let (care, _) = pulse.check(next_ms, seen(200, true, 1));
        assert_eq!(care, Care::Dead);
        const { assert!(HTTP2_PING_INTERVAL_MS + HTTP2_PONG_MS_MAX < 60_000) };
    }

    #[test]
    fn a_connection_without_streams_is_left_in_peace_and_ends_when_it_was_idle_for_long() {
        let mut pulse = Pulse::new(0, IDLE_MS);
        let (care, mut now_ms) = pulse.check(10, seen(100, false, 1));
        assert_eq!(care, Care::Ping);
        pulse.pong();
        // The answer itself is no reason to ask again.
        let mut looks = Vec::new();
        while looks.last() != Some(&Care::Idle) {
            assert!(now_ms < 2 * IDLE_MS);
            let (care, next_ms) = pulse.check(now_ms, seen(100 + PONG_BYTES, false, 1));
            looks.push(care);
            if care == Care::Idle {
                assert_eq!(now_ms, 10 + IDLE_MS);
            }
            now_ms = next_ms;
        }
        assert!(!looks.contains(&Care::Ping), "{looks:?}");
    }

    #[test]
    fn a_client_that_only_pings_is_idle_and_one_with_short_streams_is_not() {
        let mut pinging = Pulse::new(0, IDLE_MS);
        let mut working = Pulse::new(0, IDLE_MS);
        let mut ended = None;
        for look in 0..2 * IDLE_MS / HTTP2_PONG_MS_MAX {
            let now_ms = look * HTTP2_PONG_MS_MAX;
            let (bytes, id) = ((look + 1) * 117, 1 + 2 * look as u32);
            if ended.is_none() && pinging.check(now_ms, seen(bytes, false, 1)).0 == Care::Idle {
                ended = Some(now_ms);
            }
            assert_ne!(working.check(now_ms, seen(bytes, false, id)).0, Care::Idle);
            pinging.pong();
            working.pong();
        }
        assert_eq!(ended, Some(IDLE_MS));
    }
}

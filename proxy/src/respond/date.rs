//! The Date of responses that come without one (RFC 9110 section 6.6.1).

use std::{
    cell::Cell,
    io::Write as _,
    time::{Duration, SystemTime},
};

use meshring_core::clock::coarse_unix_s;

/// Length of an IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`.
const LEN: usize = 29;

/// The current date as text, written anew once a second.
#[derive(Debug)]
pub(crate) struct Clock {
    second: Cell<u64>,
    text: Cell<[u8; LEN]>,
}

impl Default for Clock {
    fn default() -> Self {
        // No second is this one, so the first question writes the text.
        Self { second: Cell::new(u64::MAX), text: Cell::new([b' '; LEN]) }
    }
}

impl Clock {
    /// The date now.
    pub(crate) fn now(&self) -> [u8; LEN] {
        self.at(coarse_unix_s())
    }

    /// The date so many seconds after the Unix epoch.
    fn at(&self, second: u64) -> [u8; LEN] {
        if self.second.replace(second) != second {
            let mut text = [b' '; LEN];
            // The format knows four digits of a year; a clock beyond that gets the last date that can be written.
            let date = httpdate::HttpDate::from(SystemTime::UNIX_EPOCH + Duration::from_secs(second.min(LAST)));
            let fits = write!(&mut text[..], "{date}");
            debug_assert!(fits.is_ok(), "an IMF-fixdate has a fixed length");
            self.text.set(text);
        }
        self.text.get()
    }
}

/// `Fri, 31 Dec 9999 23:59:59 GMT`.
const LAST: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_follows_the_wall_clock_even_backwards_and_beyond_its_range() {
        let clock = Clock::default();
        let at = |seconds| {
            let text = clock.at(seconds);
            String::from_utf8(text.to_vec()).unwrap()
        };
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_778), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(at(LAST + 1_000), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}

//! What control's log tells of a publication.

use std::time::SystemTime;

/// The line "generation 1 is active (start): 512 bytes, compiled in 0.3 ms, prepared by 0 proxies in 0.0 ms".
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Publication {
    /// When it was logged, which is just after the generation was made active.
    pub(crate) at: SystemTime,
    pub(crate) bytes: u64,
    pub(crate) compile_ms: f64,
    pub(crate) prepare_ms: f64,
}

/// The first publication of a log.
pub(crate) fn first_publication(log: &str) -> Option<Publication> {
    log.lines().find_map(publication)
}

fn publication(line: &str) -> Option<Publication> {
    let (timestamp, rest) = line.trim_start().split_once(' ')?;
    let (_, rest) = rest.split_once("generation ")?;
    let (_, rest) = rest.split_once(" is active (")?;
    let (_, rest) = rest.split_once("): ")?;
    let (bytes, rest) = rest.split_once(" bytes, compiled in ")?;
    let (compile_ms, rest) = rest.split_once(" ms, prepared by ")?;
    let (_, rest) = rest.split_once(" in ")?;
    let (prepare_ms, _) = rest.split_once(" ms")?;
    Some(Publication {
        at: humantime::parse_rfc3339(timestamp).ok()?,
        bytes: bytes.parse().ok()?,
        compile_ms: compile_ms.parse().ok()?,
        prepare_ms: prepare_ms.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_line_of_a_publication_is_found_and_read() {
        let log = "1970-01-01T00:00:01.000000Z  INFO proxy default/a (pid 7) is here: 1 worker\n\
                   1970-01-01T00:00:02.500000Z  INFO generation 3 is active (files changed): 1234 bytes, compiled in \
                   17.5 ms, prepared by 2 proxies in 0.4 ms\n\
                   1970-01-01T00:00:03.000000Z  INFO generation 4 is active (apply): 1 bytes, compiled in 1.0 ms, \
                   prepared by 2 proxies in 0.1 ms\n";
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(2500);
        let expected = Publication { at, bytes: 1234, compile_ms: 17.5, prepare_ms: 0.4 };
        assert_eq!(first_publication(log), Some(expected));
        assert_eq!(first_publication("1970-01-01T00:00:01Z INFO generation 3 is active as before: nothing"), None);
    }
}

//! How streams wait for their responses.

use meshring_core::limits::{HOT_STREAMS_MAX, PROMPT_ANSWERS_MIN};

use super::*;
use crate::testing::{on_each_driver, pair};

fn prompt(conn: &Conn) {
    for _ in 0..PROMPT_ANSWERS_MIN {
        conn.has_answered(true);
    }
}

#[test]
fn who_has_been_prompt_waits_in_a_place_of_its_own_for_as_long_as_it_takes_and_others_for_a_moment() {
    on_each_driver(async |worker| {
        let ((unknown, _one), (known, _other)) = (pair(&worker), pair(&worker));
        prompt(&known);
        let begin = |conn| Wait::begin(&worker, conn, now_ms());
        let trusted: Vec<_> = (0..HOT_STREAMS_MAX).map(|_| begin(&known).unwrap()).collect();
        assert!(trusted.iter().all(|wait| wait.hold.is_none()));
        let mut others: Vec<_> = (0..HOT_STREAMS_MAX / 2).map(|_| begin(&unknown).unwrap()).collect();
        // Where the places of those are taken, it is as any other.
        others.extend((others.len()..HOT_STREAMS_MAX).map(|_| begin(&known).unwrap()));
        assert!(others.iter().all(|wait| wait.hold == Some(HOLD_BUFFER_MS_MAX)));
        assert!(begin(&known).is_none() && begin(&unknown).is_none());
        drop(trusted);
        assert!(begin(&known).is_some_and(|wait| wait.hold.is_none()) && begin(&unknown).is_none());
        drop(others);
        assert!(begin(&unknown).is_some());
    });
}

#[test]
fn an_answer_that_was_waited_for_says_whether_its_connection_is_prompt() {
    on_each_driver(async |worker| {
        let (conn, _server) = pair(&worker);
        for _ in 0..PROMPT_ANSWERS_MIN {
            assert!(!conn.is_prompt());
            // Not yet asked: however slow the machine is, the answer is not late.
            Wait::begin(&worker, &conn, now_ms() + 1_000_000).unwrap().end(&conn);
        }
        let wait = Wait::begin(&worker, &conn, now_ms() - HOLD_BUFFER_MS_MAX).unwrap();
        assert!(wait.hold.is_none());
        wait.end(&conn);
        assert!(!conn.is_prompt());
    });
}

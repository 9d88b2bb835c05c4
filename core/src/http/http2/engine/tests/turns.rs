//! What costs much is done in turns, and what is of no use not for ever.

use super::*;
use crate::limits::{HTTP2_DRIBBLE_BYTES, HTTP2_UPDATES_FOR_A_USELESS_FRAME, HTTP2_USELESS_FRAMES_MAX};

const UPDATES_MAX: u32 = HTTP2_USELESS_FRAMES_MAX * HTTP2_UPDATES_FOR_A_USELESS_FRAME;

#[test]
fn streams_of_a_connection_that_is_lost_are_told_in_turns_and_each_is() {
    let mut out = Vec::new();
    let mut server: Engine<Woken> = Engine::new(Role::Server, &mut out);
    let requests: Vec<u8> = (0..20).flat_map(|number| get(2 * number + 1, 5)).collect();
    let hello = [PREFACE, &frame(kind::SETTINGS, 0, 0, b""), &requests].concat();
    let (mut at, mut scratch) = (0, Scratch::default());
    while at < hello.len() {
        at += server.receive(&hello[at..], &mut scratch, &mut out).unwrap();
    }
    let keys: Vec<_> = std::iter::from_fn(|| server.next_event()).filter_map(opened_key).collect();
    assert!(!server.tell(usize::MAX), "nothing has happened yet");
    server.lose();
    let woken = |server: &Engine<Woken>| {
        keys.iter().filter_map(|key| server.waiter(*key)).map(|waiter| waiter.0.get()).collect::<Vec<_>>()
    };
    assert_eq!(woken(&server), [0; 20]);
    // All of them know when they ask.
    assert!(keys.iter().all(|key| server.is_cancelled(*key)));
    let mut turns = 0;
    while server.tell(3) {
        turns += 1;
        assert_eq!(woken(&server).iter().sum::<usize>(), 3 * turns);
    }
    assert_eq!(woken(&server), [1; 20]);
    // Some have gone meanwhile.
    server.lose();
    assert!(server.tell(1));
    keys[..10].iter().for_each(|key| server.release(*key, &mut out));
    server.tell(usize::MAX);
    assert_eq!(woken(&server), [2; 10]);
    assert!(!server.tell(1));
    keys[10..].iter().for_each(|key| server.release(*key, &mut out));
    assert!(server.is_idle() && !server.tell(1));
}

/// How it ends when a client widens the window of its stream by so many bytes, each time that they are used up: after how many times.
fn take_in_pieces(bytes: usize) -> (u32, Result<(), ConnectionError>) {
    let (mut out, mut scratch) = (Vec::new(), Scratch::default());
    let mut server = Engine::<()>::new(Role::Server, &mut out);
    // A window of nothing.
    let settings = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let hello = [PREFACE, &settings, &frame(kind::WINDOW_UPDATE, 0, 0, &[0x10, 0, 0, 0]), &get(1, 5)].concat();
    receive(&mut server, &hello, &mut scratch, &mut out).unwrap();
    let key = server.next_event().and_then(opened_key).unwrap();
    server.section(key, true, false, &mut out, |out| encode_status(out, 200));
    let update = frame(kind::WINDOW_UPDATE, 0, 1, &(bytes as u32).to_be_bytes());
    for count in 0..2 * UPDATES_MAX {
        out.clear();
        if let Err(error) = receive(&mut server, &update, &mut scratch, &mut out) {
            return (count, Err(error));
        }
        assert_eq!(server.room(key, b""), Room::Bytes(bytes));
        server.data(key, &vec![0; bytes], false, &mut out);
    }
    (2 * UPDATES_MAX, Ok(()))
}

#[test]
fn a_response_that_is_taken_byte_by_byte_is_not_for_ever() {
    let (count, result) = take_in_pieces(1);
    assert_eq!(result.unwrap_err().code, Code::ENHANCE_YOUR_CALM);
    assert!(count >= UPDATES_MAX - 2 * HTTP2_UPDATES_FOR_A_USELESS_FRAME, "{count}");
    assert_eq!(take_in_pieces(HTTP2_DRIBBLE_BYTES).1, Ok(()));
}

#[test]
fn pings_are_for_those_who_do_something_beside() {
    let (mut out, mut scratch) = (Vec::new(), Scratch::default());
    let mut server = Engine::<()>::new(Role::Server, &mut out);
    receive(&mut server, &[PREFACE, &frame(kind::SETTINGS, 0, 0, b"")].concat(), &mut scratch, &mut out).unwrap();
    let ping = frame(kind::PING, 0, 0, b"pingping");
    // As Go's gRPC, which measures the round trip with each response (BDP).
    for number in 0..2 * HTTP2_USELESS_FRAMES_MAX {
        out.clear();
        receive(&mut server, &[&get(2 * number + 1, 5), &*ping].concat(), &mut scratch, &mut out).unwrap();
        let key = server.next_event().and_then(opened_key).unwrap();
        server.section(key, true, true, &mut out, |out| encode_status(out, 200));
        server.release(key, &mut out);
    }
    let count = (0..).find(|_| receive(&mut server, &ping, &mut scratch, &mut out).is_err()).unwrap();
    assert!((HTTP2_USELESS_FRAMES_MAX - 2..=HTTP2_USELESS_FRAMES_MAX).contains(&count), "{count}");
}

fn opened_key(event: Event) -> Option<StreamKey> {
    match event {
        Event::Opened(opening) => Some(opening.key),
        _ => None,
    }
}

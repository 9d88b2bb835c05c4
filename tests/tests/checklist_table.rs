//! The HTTP checklist, and the tests that keep each item of it: `tests/HTTP-CHECKLIST.md` is made from the names of the
//! test functions. With `MESHRING_BLESS=1` in the environment it is written anew.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Where an item must have a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// In the codec or a unit of the proxy, and end to end.
    Both,
    /// End to end: it is about sockets, and no unit by itself can keep it.
    EndToEnd,
}

use Level::{Both, EndToEnd};

/// Items 1 to 67: HTTP/1.1; then HTTP/2.
const ITEMS: [(Level, &str); 83] = [
    (Both, "A line that ends in a bare LF is refused"),
    (Both, "A CR without LF is refused"),
    (Both, "NUL and other control characters are refused"),
    (Both, "Folded field lines (obs-fold) are refused"),
    (Both, "White space between a field name and its colon is refused"),
    (Both, "White space before the first field is refused"),
    (Both, "A field line without a colon is refused"),
    (Both, "An empty field name is refused"),
    (Both, "A byte such as 0x85 that is no token character is refused in a field name"),
    (Both, "Content-Length and Transfer-Encoding in one request are refused"),
    (Both, "Two Content-Length lines are refused, equal or not"),
    (Both, "A list in Content-Length is refused"),
    (Both, "A Content-Length that is not decimal digits below 2^64 is refused"),
    (Both, "A transfer coding that is not understood is 501"),
    (Both, "`chunked` that is not the last coding is refused"),
    (Both, "`chunked` in any other spelling, or on two lines, is refused"),
    (Both, "Transfer-Encoding in HTTP/1.0 is refused"),
    (Both, "A chunk size that is not 1 to 16 hexadecimal digits is refused"),
    (Both, "Chunk extensions are accepted, and stripped"),
    (Both, "CR, LF and NUL in a chunk extension are refused"),
    (Both, "More than 4 KiB of chunk extensions in one message are refused"),
    (Both, "Chunk data that is not followed by CRLF is refused"),
    (Both, "A last chunk that does not end in CRLF is refused"),
    (Both, "Trailer fields about framing, routing and identity are dropped"),
    (Both, "A client that ends in mid-body aborts the upstream, whose connection is not pooled"),
    (Both, "One empty line before a request is ignored"),
    (Both, "More than one blank in the request line is refused"),
    (Both, "An HTTP version other than 1.0 and 1.1 is 505"),
    (Both, "A request without Host is refused"),
    (Both, "Two Host lines are refused"),
    (Both, "A Host that is no host is refused"),
    (Both, "The authority of an absolute target is routed and sent, not Host"),
    (Both, "The target `*` is for OPTIONS only"),
    (Both, "A fragment in the target is refused"),
    (Both, "`%00`, backslashes and overlong UTF-8 in the path are refused"),
    (Both, "However a path is spelt, router, rules and upstream see one string"),
    (Both, "Names with `_` for `-` that a server could take for the real ones are refused"),
    (Both, "A target over 8 KiB is 414"),
    (Both, "A head over 60 KiB or with more than 100 fields is 431"),
    (Both, "A body over the configured limit is 413"),
    (Both, "Pipelined requests are answered in order; a malformed one is the last"),
    (Both, "Fields of one hop are not forwarded, nor those that Connection nominates"),
    (Both, "Connection must not nominate what decides about framing, routing or identity"),
    (Both, "Of TE only `trailers` is forwarded"),
    (Both, "Via is appended"),
    (Both, "X-Forwarded-For is joined and appended to; what an untrusted peer claims is replaced"),
    (Both, "Max-Forwards 0 is answered here"),
    (Both, "Date is added where there is none"),
    (Both, "Our own HTTP version is sent"),
    (Both, "An expectation other than `100-continue` is 417"),
    (Both, "A client that expects 100 gets exactly one"),
    (Both, "103 is relayed, but not to HTTP/1.0"),
    (Both, "A 101 that nobody asked for is 502"),
    (
        Both,
        "Bytes that come before a 101 or the 2xx to a CONNECT are held until it is there, and go nowhere without it",
    ),
    (Both, "CONNECT is 405 where it is not configured; framing fields of its 2xx are ignored"),
    (Both, "`Upgrade: h2c` and HTTP2-Settings are stripped"),
    (Both, "A response to HEAD has no body, and the next response is aligned"),
    (Both, "Bytes behind a 204 or 304 end the upstream connection"),
    (Both, "A response with ambiguous framing is 502"),
    (Both, "Bytes on an idle pooled connection end it"),
    (Both, "A malformed response head is 502"),
    (Both, "A truncated body is aborted and never gets an end"),
    (Both, "An HTTP/1.0 client never gets chunks"),
    (Both, "An early 413 is relayed, the upstream closed, and at most 64 KiB of the rest are read"),
    (Both, "A client that has closed its half still gets its response"),
    (Both, "Slow headers are 408, a silent upstream 504, a reset 502, no endpoint 503"),
    (Both, "A reset on a reused connection: one retry for idempotent methods, 502 for a POST"),
    (Both, "An upper-case field name is a stream error"),
    (Both, "A pseudo field that is repeated, unknown, missing, late or in trailers is a stream error"),
    (Both, "A `:path` that is empty or begins without a slash is a stream error"),
    (Both, "CR, LF and NUL in a value, white space at an end of it and an empty name are stream errors"),
    (Both, "Fields about an HTTP/1.1 connection are stream errors"),
    (Both, "TE with anything but `trailers` is a stream error"),
    (Both, "Host unlike `:authority` is a stream error"),
    (Both, "A `:scheme` other than `http` and `https` is 400"),
    (Both, "A Content-Length that the body does not keep is a stream error and ends the HTTP/1.1 upstream"),
    (Both, "Cookie crumbs are joined with `; `, and each counts as a field"),
    (EndToEnd, "Trailers without END_STREAM are an error"),
    (EndToEnd, "HPACK that is broken is COMPRESSION_ERROR"),
    (EndToEnd, "A window that overflows is FLOW_CONTROL_ERROR; reset streams and padding get their credit back"),
    (EndToEnd, "A field that is never indexed stays so"),
    (EndToEnd, "A shutdown sends GOAWAY with 2^31-1, then the final one"),
    (Both, "Our errors to gRPC are 200 with the grpc-status that fits, and trailers only"),
];

/// Attacks on proxies, by kind.
const ATTACKS: [(&str, &[(u16, u32)]); 5] = [
    (
        "Smuggling",
        &[
            (2021, 40346),
            (2023, 25725),
            (2023, 39326),
            (2023, 40225),
            (2025, 4366),
            (2025, 22871),
            (2025, 32094),
            (2025, 55315),
            (2026, 2833),
            (2026, 2835),
            (2026, 42926),
            (2026, 73548),
        ],
    ),
    (
        "Access bypass",
        &[
            (2019, 9900),
            (2019, 9901),
            (2021, 29492),
            (2021, 32777),
            (2021, 32813),
            (2022, 31813),
            (2024, 45410),
            (2024, 45806),
            (2025, 66220),
            (2026, 26308),
            (2026, 26365),
            (2026, 47778),
            (2026, 73511),
            (2026, 73551),
            (2026, 73552),
            (2026, 73553),
        ],
    ),
    ("Log injection", &[(2024, 45808)]),
    (
        "HTTP/2 floods",
        &[
            (2019, 9511),
            (2019, 9512),
            (2019, 9513),
            (2019, 9514),
            (2019, 9515),
            (2019, 9516),
            (2019, 9517),
            (2019, 9518),
            (2021, 32778),
            (2023, 44487),
            (2024, 7246),
            (2024, 27316),
            (2025, 8671),
            (2026, 47774),
            (2026, 49975),
            (2026, 73550),
        ],
    ),
    ("TLS", &[(2024, 11738), (2024, 32650), (2025, 23419), (2026, 1642)]),
];

/// Other names of the same attack.
const ALIASES: [((u16, u32), &str); 2] = [((2019, 9518), "RUSTSEC-2026-0258"), ((2024, 27316), "RUSTSEC-2024-0332")];

/// Attacks that no codec of ours can keep out: what a regular expression makes of a byte is the table's, and frames and handshakes
/// are the business of a connection. They are seen end to end.
fn has_codec(kind: &str, cve: (u16, u32)) -> bool {
    !matches!(kind, "HTTP/2 floods" | "TLS") && ![(2026, 42926), (2026, 73552)].contains(&cve)
}

/// What a test is about, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Item(usize),
    Cve(u16, u32),
}

/// The subjects in the name of a function: `item_5_...`, `items_5_and_7_to_9_...`, `item_1_..._and_item_3_...`,
/// `cve_2023_40225_and_2023_25725_...`.
fn subjects(name: &str) -> Vec<Subject> {
    let words: Vec<_> = name.split('_').collect();
    let mut subjects = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let word = words[at];
        at += 1;
        match word {
            "item" | "items" => at += items(&words[at..], &mut subjects),
            "cve" => at += cves(&words[at..], &mut subjects),
            _ => {}
        }
    }
    subjects
}

/// Reads `5`, `5_and_7`, `5_to_9`; returns how many words that takes.
fn items(words: &[&str], subjects: &mut Vec<Subject>) -> usize {
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok());
    let Some(mut last) = number(0) else { return 0 };
    subjects.push(Subject::Item(last));
    let mut at = 1;
    while let (Some(&join @ ("and" | "to")), Some(next)) = (words.get(at), number(at + 1)) {
        let first = if join == "to" { last + 1 } else { next };
        subjects.extend((first..=next).map(Subject::Item));
        last = next;
        at += 2;
    }
    at
}

/// Reads `2023_40225`, `2023_40225_and_2023_25725`, `2023_40225_2023_25725`; returns how many words that takes.
fn cves(words: &[&str], subjects: &mut Vec<Subject>) -> usize {
    let mut at = 0;
    loop {
        let skip = usize::from(at > 0 && words.get(at) == Some(&"and"));
        let year = words.get(at + skip).and_then(|word| word.parse().ok()).filter(|year| (1999..2100).contains(year));
        let number = words.get(at + skip + 1).and_then(|word| word.parse().ok());
        let (Some(year), Some(number)) = (year, number) else { return at };
        subjects.push(Subject::Cve(year, number));
        at += skip + 2;
    }
}

/// Names of tests by what they are about, each with the path of its file from the root of the repository.
type Tests = BTreeMap<Subject, Vec<(String, String)>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All tests in a folder and below.
fn tests_in(folder: &str) -> Tests {
    let mut tests = Tests::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                add_tests_of(&path, &mut tests);
            }
        }
    }
    tests.values_mut().for_each(|names| names.sort());
    tests
}

fn add_tests_of(path: &Path, tests: &mut Tests) {
    let source = fs::read_to_string(path).unwrap();
    let file = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    for line in source.lines() {
        let Some(name) = line.trim_start().strip_prefix("fn ").and_then(|rest| rest.split('(').next()) else {
            continue;
        };
        for subject in subjects(name) {
            tests.entry(subject).or_default().push((file.clone(), name.to_owned()));
        }
    }
}

/// One cell: the tests by file.
fn cell(tests: Option<&Vec<(String, String)>>) -> String {
    let mut by_file = BTreeMap::<&str, Vec<&str>>::new();
    for (file, name) in tests.into_iter().flatten() {
        by_file.entry(file).or_default().push(name);
    }
    let files = by_file.into_iter().map(|(file, names)| {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let (folder, last) = file.rsplit_once('/').unwrap();
        // `mod.rs` says nothing.
        let shown = if last == "mod.rs" { &file[folder.rfind('/').map_or(0, |at| at + 1)..] } else { last };
        format!("[{shown}](../{file}): {}", names.join(", "))
    });
    files.collect::<Vec<_>>().join("<br>")
}

/// A row, and what is missing in it.
fn row(
    out: &mut String,
    missing: &mut Vec<String>,
    subject: Subject,
    what: &str,
    level: Level,
    units: &Tests,
    whole: &Tests,
) {
    let (unit, end_to_end) = (cell(units.get(&subject)), cell(whole.get(&subject)));
    let label = match subject {
        Subject::Item(number) => number.to_string(),
        Subject::Cve(year, number) => match ALIASES.iter().find(|(cve, _)| *cve == (year, number)) {
            Some((_, alias)) => format!("CVE-{year}-{number}, {alias}"),
            None => format!("CVE-{year}-{number}"),
        },
    };
    if unit.is_empty() && level == Level::Both {
        missing.push(format!("{label} ({what}) has no test of the codec or of a unit"));
    }
    if end_to_end.is_empty() {
        missing.push(format!("{label} ({what}) has no end-to-end test"));
    }
    let unit = if unit.is_empty() { "-".to_owned() } else { unit };
    writeln!(out, "| {label} | {what} | {unit} | {end_to_end} |").unwrap();
}

#[test]
fn every_item_has_its_tests_and_the_table_says_which() {
    let mut units = tests_in("core/src");
    for (subject, tests) in tests_in("proxy/src") {
        units.entry(subject).or_default().extend(tests);
    }
    let whole = tests_in("tests/tests");
    let mut missing = Vec::new();
    let mut out = String::from(
        "# HTTP checklist\n\n\
         Made from the names of the tests by `tests/tests/checklist_table.rs`; write it anew with\n\
         `MESHRING_BLESS=1 cargo test -p meshring-tests --test checklist_table`.\n\n\
         Refused means: 400, or the status given; `connection: close` and the end of the connection; nothing of what stands\n\
         behind the request is served; not one byte reaches an upstream. A stream error (HTTP/2) means: RST_STREAM with\n\
         PROTOCOL_ERROR, not one byte at an upstream, and the other streams of the connection go on. End-to-end tests drive the\n\
         proxy by a client whose every byte they write and an upstream that records every byte, on io_uring and on epoll.\n\n\
         | item | rule | codec and units | end to end |\n|---|---|---|---|\n",
    );
    for (at, (level, what)) in ITEMS.into_iter().enumerate() {
        row(&mut out, &mut missing, Subject::Item(at + 1), what, level, &units, &whole);
    }
    out.push_str(
        "\n# Attacks that took other proxies down\n\n\
         | attack | kind | codec and units | end to end |\n|---|---|---|---|\n",
    );
    for (kind, cves) in ATTACKS {
        for &(year, number) in cves {
            let level = if has_codec(kind, (year, number)) { Both } else { EndToEnd };
            row(&mut out, &mut missing, Subject::Cve(year, number), kind, level, &units, &whole);
        }
    }
    out.push_str(
        "\nCVE-2026-47692 (a type-length-value of the PROXY protocol beyond its header) does not apply: no listener takes the \
         PROXY protocol.\n",
    );
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    expect_known(&units, &whole);

    let path = root().join("tests/HTTP-CHECKLIST.md");
    if std::env::var_os("MESHRING_BLESS").is_some() {
        fs::write(&path, &out).unwrap();
    }
    let on_disk = fs::read_to_string(&path).unwrap_or_default();
    assert!(on_disk == out, "{} is not what the tests say: run with MESHRING_BLESS=1", path.display());
}

/// A name with a number that is on no list is a typing mistake, and hides that the real one has no test.
#[track_caller]
fn expect_known(units: &Tests, whole: &Tests) {
    for (subject, tests) in units.iter().chain(whole) {
        let is_known = match *subject {
            Subject::Item(number) => (1..=ITEMS.len()).contains(&number),
            Subject::Cve(year, number) => ATTACKS.iter().any(|(_, cves)| cves.contains(&(year, number))),
        };
        assert!(is_known, "{subject:?} is on no list: {tests:?}");
    }
}

#[test]
fn names_are_read_as_they_are_meant() {
    use Subject::{Cve, Item};
    for (name, expected) in [
        ("item_5_white_space", vec![Item(5)]),
        ("items_25_and_62_truncated", vec![Item(25), Item(62)]),
        ("items_5_to_7_and_9_lines", vec![Item(5), Item(6), Item(7), Item(9)]),
        ("item_49_our_version_and_item_32_absolute", vec![Item(49), Item(32)]),
        ("item_47_max_forwards_0_is_answered_here", vec![Item(47)]),
        ("item_66_slow_headers_are_408", vec![Item(66)]),
        ("every_item_has_its_tests", vec![]),
        ("cve_2023_40225_an_empty_one", vec![Cve(2023, 40225)]),
        ("cve_2021_32777_and_2026_26308_two", vec![Cve(2021, 32777), Cve(2026, 26308)]),
        ("cve_2019_9900_2026_47778_and_2025_66220_nul", vec![Cve(2019, 9900), Cve(2026, 47778), Cve(2025, 66220)]),
    ] {
        assert_eq!(subjects(name), expected, "{name}");
    }
}

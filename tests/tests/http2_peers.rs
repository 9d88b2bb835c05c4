//! The peers of the HTTP/2 tests against each other, without a proxy: what fails between them here is not the proxy's fault.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::process::Command;

use meshring_tests::{
    binaries::is_installed,
    frames::{self, code},
    generate::{assert_same_bytes, body},
    h2::{self, Connection, Opening},
    peers::{self, Server},
    ports::Reserved,
    process::Process,
    upstream::Upstream,
    wait,
};

#[test]
fn a_hand_made_client_and_server_understand_each_other() {
    let server = Upstream::scripted(|peer| {
        let Some(mut connection) = Connection::accept(peer.stream(), &Opening::default()) else { return };
        let mut seen = Vec::new();
        while let Some((stream, message)) = connection.accept_stream(&mut seen, |message| message.ended) {
            connection.send(frames::headers(stream, frames::block(&[(":status", "200")]), false));
            connection.body(stream, &message.body, false);
            connection.send(frames::headers(stream, frames::block(&[("x-end", "here")]), true));
        }
    });
    let mut client = Connection::connect(server.address());
    let data = body(1, 300_000);
    let streams: Vec<_> = (0..3).map(|_| client.request(&h2::request("POST", "a", "/"), false)).collect();
    for &stream in &streams {
        client.body(stream, &data, true);
    }
    for stream in streams {
        let response = client.response(stream);
        assert_same_bytes(&response.expect(200).body, &data);
        assert_eq!(response.trailers.value("x-end"), Some("here"));
    }
    client.settle();
}

#[test]
fn nghttpd_answers_a_hand_made_client_and_refuses_what_is_malformed() {
    if !is_installed("nghttpd") {
        return;
    }
    let reserved = Reserved::new();
    let address = reserved.address();
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), body(2, 500_000)).unwrap();
    drop(reserved);
    let mut command = Command::new("nghttpd");
    command.args(["--no-tls", "-d"]).arg(dir.path()).args(["-a", "127.0.0.1", &address.port().to_string()]);
    let _server = Process::start("nghttpd", &mut command);
    wait::until("nghttpd", || std::net::TcpStream::connect(address).ok());
    let mut client = Connection::connect(address);
    assert_same_bytes(&client.get("a", "/file").expect(200).body, &body(2, 500_000));
    client.get("a", "/none").expect(404);
    let stream = client.request(&[&h2::get("a", "/")[..], &[("X-Upper", "y")]].concat(), true);
    client.response(stream).expect_reset(code::PROTOCOL_ERROR);
    client.send(frames::window_update(0, 0)).expect_end(code::PROTOCOL_ERROR);
}

#[test]
fn hyper_h2_takes_what_a_hand_made_client_sends() {
    let Some(python) = peers::python() else { return };
    let server = Server::start(&python, "h2_peer.py", &[]);
    let mut client = Connection::connect(server.address);
    let data = body(3, 200_000);
    let stream = client.request(&h2::request("POST", "a", "/echo"), false);
    client.body(stream, &data, true);
    assert_same_bytes(&client.response(stream).expect(200).body, &data);
    let told = peers::run(&python, "h2_peer.py", &[&server.address.to_string(), "a", "20", "70000"]);
    assert_eq!(told, [serde_json::json!({"good": 20})]);
    assert!(server.told("violation").is_empty(), "{:?}", server.told("violation"));
}

#[test]
fn websockets_of_both_versions_are_closed_with_the_code_that_was_sent() {
    let Some(python) = peers::python() else { return };
    for version in ["h1", "h2"] {
        let server = Server::start(&python, "ws_peer.py", &[version]);
        let told = peers::run(&python, "ws_peer.py", &[version, &server.address.to_string(), "a", "/chat"]);
        let expected = serde_json::json!({"subprotocol": "judge.echo", "same": 14, "of": 14, "code": 4001});
        assert_eq!(told, [expected]);
        server.wait_for("event", "closed", 1);
    }
}

#[test]
fn ws_of_node_talks_to_itself_over_both_versions() {
    let Some(node) = peers::node() else { return };
    for version in ["h1", "h2"] {
        let server = Server::start(&node, "ws_peer.cjs", &[version]);
        let arguments = [version, &server.address.to_string(), "a", "/chat"];
        let expected = serde_json::json!({"subprotocol": "judge.echo", "same": 16, "of": 16, "code": 4001});
        assert_eq!(peers::run(&node, "ws_peer.cjs", &arguments), [expected]);
        let told = peers::run_role(&node, "ws_peer.cjs", "leave", &arguments);
        assert_eq!(told, [serde_json::json!({"code": 4002, "reason": "as you wish"})]);
        server.wait_for("event", "closed", 2);
        server.wait_for("event", "ping", 1);
        assert!(server.told("violation").is_empty(), "{:?}", server.told("violation"));
    }
}

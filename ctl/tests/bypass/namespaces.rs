//! What crosses namespaces of the network, or stays in another one, is not ours, whatever its addresses are.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
};

use super::world::{World, alone, pair, reach, until};

const NAME: &str = "namespaces::what_crosses_namespaces_or_stays_in_another_one_is_tcp";
/// Set in the two processes of the test: `own` in the one with the listeners; in the other their addresses.
const ROLE: &str = "MESHRING_TEST_NAMESPACE";

/// Runs a command of ip(8), or panics.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip(8)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// This test again, in a namespace of its own.
fn again(role: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--"]).arg(env::current_exe().expect("this program"));
    command.args(["--exact", NAME, "--nocapture"]).env(ROLE, role);
    command
}

#[test]
fn what_crosses_namespaces_or_stays_in_another_one_is_tcp() {
    match env::var(ROLE) {
        Ok(role) if role == "own" => return own(),
        Ok(addresses) => return other(&addresses),
        Err(_) => {}
    }
    // The processes below begin in the cgroup of this one: no other test may have put it into its own.
    let _alone = alone();
    let probe = "ip link set lo up && ip link add veth0 type veth peer name veth1";
    match Command::new("unshare").args(["--net", "sh", "-c", probe]).output() {
        Ok(output) if output.status.success() => {}
        other => {
            println!("skipped: a namespace with two ends of a cable cannot be had: {other:?}");
            return;
        }
    }
    let output = again("own").output().expect("run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    if let Some(line) = said.lines().find(|line| line.starts_with("skipped")) {
        println!("{line}");
    }
}

/// With the listeners that are registered.
fn own() {
    ip("link set lo up");
    let Some(mut world) = World::unregistered() else { return };
    let (everywhere, here) = (world.listener("0.0.0.0:0"), world.listener("127.0.0.1:0"));
    let addresses = format!("10.77.0.1:{} {}", reach(&everywhere).port(), reach(&here));
    let mut child = again(&addresses).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut wait_for = |text: &str| {
        lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(text))).unwrap_or_else(|| panic!("no {text}"))
    };
    wait_for("its namespace is there").expect("read");
    ip(&format!("link add veth0 type veth peer name veth1 netns {}", child.id()));
    ip("addr add 10.77.0.1/24 dev veth0");
    ip("link set veth0 up");
    child.stdin.take().expect("piped").write_all(b"go\n").expect("written");
    let (mut server, _) = everywhere.accept().expect("accepted");
    answer(&mut server);
    drop(server);
    wait_for("both were answered").expect("read");
    assert!(child.wait().expect("waited").success());
    // The one to our listener is counted as TCP's; the one to its own, on the address of ours, is nobody's.
    until("the bytes to be counted", || world.counters().bytes_tcp > 0);
    let counters = world.counters();
    assert_eq!((counters.connections_bypass, counters.bytes_bypass), (0, 0), "{counters:?}");
    assert_eq!(counters.connections_tcp, 1, "{counters:?}");
    assert!((13..=16).contains(&counters.bytes_tcp), "{counters:?}");
    // And what stays here goes around TCP.
    for listener in [&everywhere, &here] {
        let (mut client, mut server) = pair(listener);
        client.write_all(b"request").expect("written");
        answer(&mut server);
        client.read_exact(&mut [0; 7]).expect("read");
    }
    let counters = world.counters();
    assert_eq!((counters.connections_bypass, counters.bytes_bypass), (2, 28), "{counters:?}");
}

fn answer(stream: &mut TcpStream) {
    let mut request = [0; 7];
    stream.read_exact(&mut request).expect("read");
    stream.write_all(&request).expect("written");
}

fn ask(mut stream: TcpStream) {
    stream.write_all(b"request").expect("written");
    stream.read_exact(&mut [0; 7]).expect("read");
}

/// In another namespace, in the same cgroup: asks the listener across, and one of its own on the other listener's address.
fn other(addresses: &str) {
    let addresses: Vec<SocketAddr> = addresses.split(' ').map(|address| address.parse().expect("an address")).collect();
    ip("link set lo up");
    println!("its namespace is there");
    std::io::stdin().read_line(&mut String::new()).expect("read");
    ip("addr add 10.77.0.2/24 dev veth1");
    ip("link set veth1 up");
    ask(TcpStream::connect(addresses[0]).expect("connected"));
    let listener = TcpListener::bind(addresses[1]).expect("bound: the address is free here");
    let client = TcpStream::connect(addresses[1]).expect("connected");
    let (mut server, _) = listener.accept().expect("accepted");
    std::thread::scope(|scope| {
        scope.spawn(|| answer(&mut server));
        ask(client);
    });
    println!("both were answered");
}

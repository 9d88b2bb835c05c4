use std::{
    io::Read as _,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::mpsc,
};

use clap::Parser as _;
use meshring_core::{
    id::Generation,
    snapshot::page::{PageReader, PageWriter},
};

use super::*;
use crate::{
    accept::Accepted,
    testing::World,
    worker::{
        driver::{Choice, probe},
        mailbox::Message,
    },
};

/// What no wait of these tests reaches unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn until(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::yield_now();
    }
}

/// A free address, which the workers bind again and again.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap()
}

fn counts_after_a_panic(driver: Driver) {
    let address = free_address();
    let outbound = format!("--outbound={address}");
    let mut config = Config::try_parse_from(["meshring-proxy", "--workload=default/test", &outbound]).unwrap();
    config.run_dir = PathBuf::new();
    let page = PageWriter::create(Generation(1)).unwrap();
    let page = Arc::new(PageReader::open(page.fd()).unwrap());
    let generations = Arc::<Generations>::default();
    generations.add(World::default().prepare());
    let (_, stats) = StatsPage::create(1).unwrap();
    let (bell_in, bell) = UnixStream::pair().unwrap();
    let (sender, ended) = mpsc::channel();
    let events = Events { sender, bell: Arc::new(bell) };
    let sockets = bind_all(&config, 1).unwrap();
    let mut supervisor = Supervisor::start(
        &config,
        driver,
        &stats,
        &generations,
        events,
        &page,
        sockets,
        Limits::default(),
        Arc::default(),
        None,
        Arc::default(),
    )
    .unwrap();
    let active = || stats.total(Counter::ConnectionsActive);
    let mailboxes = Arc::clone(supervisor.mailboxes());
    let counted = || mailboxes.connections(0);

    let lost: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    until("three connections", || active() == 3 && counted() == 3);
    // A listener that the worker does not have.
    let stray = TcpStream::connect(address).unwrap();
    until("the fourth connection", || active() == 4);
    supervisor.mailboxes().send(0, Message::Connection(Accepted::new(stray, usize::MAX)));
    match ended.recv_timeout(PATIENCE).unwrap() {
        Event::WorkerEnded(0, Err(reason)) => assert_eq!(reason, "it panicked"),
        event => panic!("{event:?}"),
    }
    for mut client in lost {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "who is connected to a worker that is gone is told so");
    }

    supervisor.replace(0, &page).unwrap();
    assert_eq!((active(), counted()), (0, 0), "the connections of a worker that is gone");
    let mut kept = vec![TcpStream::connect(address).unwrap()];
    until("the first connection of the new worker", || active() == 1 && counted() == 1);
    kept.push(TcpStream::connect(address).unwrap());
    until("the second one", || active() == 2 && counted() == 2);
    drop(kept);
    until("no connection", || active() == 0 && counted() == 0);
    // What still ends on behalf of the worker that is gone does not count below nothing.
    supervisor.mailboxes().remove_connection(0);
    assert_eq!(counted(), 0);

    supervisor.mailboxes().send(0, Message::Drain);
    assert!(matches!(ended.recv_timeout(PATIENCE).unwrap(), Event::WorkerEnded(0, Ok(()))));
    drop(bell_in);
}

#[test]
fn a_worker_in_the_place_of_one_that_panicked_counts_its_own_connections_alone() {
    for choice in [Choice::Auto, Choice::Epoll] {
        counts_after_a_panic(probe(choice).unwrap());
    }
}

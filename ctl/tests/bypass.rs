//! The bypass itself, against this kernel: the process of the test is proxy and application at once.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use meshring_ctl::bypass::{Bypass, Slot};

static ALONE: Mutex<()> = Mutex::new(());

/// This process in a cgroup of its own, with a bypass on it.
struct World {
    bypass: Bypass,
    slot: Slot,
    cgroup: PathBuf,
    root: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    fn new(room: u32) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let root = root.into_iter().find(|root| root.join("cgroup.procs").exists());
        let Some(root) = root else {
            println!("skipped: no cgroup v2 here");
            return None;
        };
        let cgroup = root.join(format!("meshring-test-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&cgroup) {
            println!("skipped: {}: {error}", cgroup.display());
            return None;
        }
        std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("moves");
        match Bypass::install_with_room(Some(&cgroup), room) {
            Ok(mut bypass) => {
                let slot = bypass.register(std::process::id()).expect("registered");
                Some(Self { bypass, slot, cgroup, root, _alone: alone })
            }
            Err(error) => {
                println!("skipped: {error}");
                leave(&root, &cgroup);
                None
            }
        }
    }

    fn listener(&mut self, address: &str) -> TcpListener {
        let listener = TcpListener::bind(address).expect("bound");
        self.bypass.add_listener(self.slot, listener.as_fd()).expect("added");
        listener
    }
}

fn leave(root: &std::path::Path, cgroup: &std::path::Path) {
    std::fs::write(root.join("cgroup.procs"), std::process::id().to_string()).expect("moves back");
    let _ = std::fs::remove_dir(cgroup);
}

impl Drop for World {
    fn drop(&mut self) {
        leave(&self.root, &self.cgroup);
    }
}

fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    }
    (client, server)
}

#[test]
fn both_directions_go_around_tcp() {
    let Some(mut world) = World::new(1024) else { return };
    println!("{:?} {:?} {:?}", world.bypass.findings(), world.bypass.programs(), world.bypass.maps());
    for address in ["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"] {
        let listener = world.listener(address);
        let port = listener.local_addr().unwrap().port();
        let to: SocketAddr =
            if address.starts_with("[::1]") { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") }
                .parse()
                .unwrap();
        let mut client = TcpStream::connect(to).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"question").unwrap();
        let mut buffer = [0; 100];
        assert_eq!(server.read(&mut buffer).unwrap(), 8);
        server.write_all(b"answers").unwrap();
        assert_eq!(client.read(&mut buffer).unwrap(), 7);
        println!("{address}: {:?} {:?}", world.bypass.counters(world.slot), world.bypass.ends(10));
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut buffer).unwrap(), 0);
        server.write_all(b"rest").unwrap();
        drop(server);
        assert_eq!(client.read(&mut buffer).unwrap(), 4);
        assert_eq!(client.read(&mut buffer).unwrap(), 0);
        println!("{address}: {:?} {:?}", world.bypass.counters(world.slot), world.bypass.ends(10));
    }
}

#[test]
fn what_closes_show() {
    let Some(mut world) = World::new(1024) else { return };
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    world.bypass.set_port(plain.local_addr().unwrap().port(), false).unwrap();
    let ours = world.listener("127.0.0.1:0");
    for (name, listener) in [("plain", &plain), ("bypass", &ours)] {
        let mut buffer = [0; 100];
        // close with unread data
        let (mut client, server) = pair(listener);
        client.write_all(b"unread").unwrap();
        drop(server);
        thread::sleep(Duration::from_millis(20));
        println!(
            "{name} unread close: read {:?} write {:?} {:?}",
            client.read(&mut buffer),
            client.write(b"x"),
            client.write(b"x")
        );
        // linger 0
        let (mut client, mut server) = pair(listener);
        server.write_all(b"before").unwrap();
        rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        drop(server);
        thread::sleep(Duration::from_millis(20));
        println!(
            "{name} linger 0: read {:?} {:?} {:?} write {:?}",
            client.read(&mut buffer),
            client.read(&mut buffer),
            client.read(&mut buffer),
            client.write(b"x")
        );
        // write after close
        let (mut client, mut server) = pair(listener);
        client.write_all(b"a").unwrap();
        server.read(&mut buffer).unwrap();
        drop(server);
        thread::sleep(Duration::from_millis(20));
        println!(
            "{name} write after close: {:?} {:?} read {:?}",
            client.write(b"x"),
            client.write(b"x"),
            client.read(&mut buffer)
        );
        // write after own shutdown
        let (mut client, mut server) = pair(listener);
        client.write_all(b"a").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        println!(
            "{name} write after shutdown: {:?} read {:?} {:?}",
            client.write(b"x"),
            server.read(&mut buffer),
            server.read(&mut buffer)
        );
        // shutdown read
        let (mut client, mut server) = pair(listener);
        server.shutdown(Shutdown::Read).unwrap();
        println!(
            "{name} write to shut read: {:?} {:?}, read {:?} {:?}",
            client.write(b"x"),
            client.write(b"y"),
            server.read(&mut buffer),
            server.read(&mut buffer)
        );
        let (mut client, server) = pair(listener);
        client.write_all(b"hello").unwrap();
        println!("{name} FIONREAD {:?}", rustix::io::ioctl_fionread(&server));
    }
    println!("{:?}", world.bypass.counters(world.slot));
}

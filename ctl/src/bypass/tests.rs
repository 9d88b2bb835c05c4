//! What needs the inside: programs of others, and a process that has the number of another one.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
};

use super::{
    assembler::{Assembler, R0},
    *,
};

/// A cgroup that nobody is in.
struct Empty(PathBuf);

impl Empty {
    fn new(name: &str) -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter();
        let root = root.map(Path::new).find(|root| root.join("cgroup.procs").exists());
        let path = root?.join(format!("meshring-unit-{name}-{}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                println!("skipped: {}: {error}", path.display());
                None
            }
        }
    }

    /// The bypass on it, where kernel and privilege are there.
    fn bypass(&self) -> Option<Bypass> {
        Bypass::install(Some(&self.0)).map_err(|error| println!("skipped: {error}")).ok()
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_cgroup_that_another_program_holds_is_refused_by_its_name() {
    let Some(group) = Empty::new("held") else { return };
    let Some(bypass) = group.bypass() else { return };
    // Two of ours may share it.
    let second = group.bypass().expect("a second one");
    drop((bypass, second));
    let mut a = Assembler::default();
    a.set(R0, 1).exit();
    let other = Program::load("somebody_else", ProgramType::SockOps, &a.finish()).expect("loaded");
    let directory = File::open(&group.0).expect("opened");
    let link = other.attach_to_cgroup(directory.as_fd()).expect("attached");
    let error = Bypass::install(Some(&group.0)).expect_err("held").to_string();
    assert!(error.contains("somebody_else") && error.contains(&group.0.display().to_string()), "{error}");
    drop(link);
    assert!(group.bypass().is_some(), "it is free again");
}

#[test]
fn the_verifier_says_what_is_wrong() {
    let mut a = Assembler::default();
    a.copy(R0, assembler::R6).exit();
    let Err(error) = Program::load("wrong", ProgramType::SockOps, &a.finish()) else { panic!("R6 is not set") };
    if error.source.raw_os_error() == Some(libc::EPERM) {
        println!("skipped: {error}");
        return;
    }
    assert!(error.to_string().contains("R6 !read_ok"), "{error}");
}

#[test]
fn nothing_is_left_in_the_kernel_when_it_is_dropped() {
    let Some(group) = Empty::new("left") else { return };
    let Some(bypass) = group.bypass() else { return };
    let directory = File::open(&group.0).expect("opened");
    assert_eq!(sys::sock_ops_of(directory.as_fd()).expect("asked").len(), 1);
    drop(bypass);
    assert_eq!(sys::sock_ops_of(directory.as_fd()).expect("asked"), []);
}

#[test]
fn a_process_with_the_number_of_one_that_has_gone_is_another_one() {
    // Loaded and never attached to anything that has processes: only the registration is looked at.
    let Some(group) = Empty::new("number") else { return };
    let Some(mut bypass) = group.bypass() else { return };
    let own = std::process::id();
    let slot = bypass.register(own).expect("registered");
    let value = bypass.maps.processes.lookup(&own.to_ne_bytes()).expect("asked").expect("it is there");
    let start = u64::from_ne_bytes(*value.first_chunk().expect("8 bytes"));
    assert_eq!(start, started_at(own).expect("this process"));
    assert!(matches!(bypass.register(u32::MAX), Err(RegisterError::Process(..))));
    bypass.unregister(slot);
    assert_eq!(bypass.maps.processes.lookup(&own.to_ne_bytes()).expect("asked"), None);
}

#[test]
fn only_tcp_sockets_that_listen_are_registered() {
    let Some(group) = Empty::new("sockets") else { return };
    let Some(mut bypass) = group.bypass() else { return };
    let slot = bypass.register(std::process::id()).expect("registered");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (mut server, _) = listener.accept().expect("accepted");
    let folder = tempfile::tempdir().expect("a folder");
    let unix = std::os::unix::net::UnixListener::bind(folder.path().join("socket"));
    assert!(matches!(bypass.add_listener(slot, client.as_fd()), Err(RegisterError::NoListener)));
    assert!(matches!(bypass.add_listener(slot, unix.expect("bound").as_fd()), Err(RegisterError::NoListener)));
    let file = File::open("/dev/null").expect("opened");
    assert!(matches!(bypass.add_listener(slot, file.as_fd()), Err(RegisterError::Kernel(_))));
    assert!(bypass.add_listener(slot, listener.as_fd()).is_ok());
    client.write_all(b"x").expect("written");
    server.read_exact(&mut [0]).expect("read");
}

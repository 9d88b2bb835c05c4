//! What the programs and control agree on: keys and values of the maps, byte for byte.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A socket's view of its connection: 16 bytes of local address (IPv4 as `::ffff:a.b.c.d`), 16 of the remote one, both
/// ports, the cookie of the network namespace, and the sequence numbers that each side started with. Those make the key
/// a proof: a socket that has the same addresses by chance (NAT, a reused port) has not the same numbers.
pub(super) mod key {
    pub(in super::super) const LOCAL: i16 = 0;
    pub(in super::super) const REMOTE: i16 = 16;
    pub(in super::super) const LOCAL_PORT: i16 = 32;
    pub(in super::super) const REMOTE_PORT: i16 = 36;
    pub(in super::super) const COOKIE: i16 = 40;
    pub(in super::super) const LOCAL_SEQUENCE: i16 = 48;
    pub(in super::super) const REMOTE_SEQUENCE: i16 = 52;
    pub(in super::super) const BYTES: i16 = 56;
}

/// What a socket knows of itself, in its own storage: whose it is, which control sets on listeners (accepted sockets inherit
/// it) and the program on what a proxy connects; and, once it is captured, everything else. One storage for both, since each
/// costs an allocation when a connection is set up.
pub(super) mod flow {
    /// The key of the other end; of the pair, too, where that is the accepting one.
    pub(in super::super) const PEER_KEY: i16 = 0;
    /// Where the other end's `struct sock` is, to see what it has not read yet.
    pub(in super::super) const PEER_SOCKET: i16 = super::key::BYTES;
    /// See [`UNDECIDED`].
    pub(in super::super) const STATE: i16 = 64;
    /// The port that the connection was made to.
    pub(in super::super) const PORT: i16 = 68;
    /// Of the proxy that counts it.
    pub(in super::super) const SLOT: i16 = 72;
    /// Messages since the other end was last seen with nothing unread.
    pub(in super::super) const MESSAGES: i16 = 76;
    /// 1 for the end that has connected, 0 for the one that has accepted.
    pub(in super::super) const IS_ACTIVE: i16 = 80;
    /// See [`pair::KIND`](super::pair::KIND).
    pub(in super::super) const KIND: i16 = 84;
    /// Messages that may go to the other end before it is looked at again, and bytes likewise: room that it had when it was
    /// last looked at, of which reading can only make more.
    pub(in super::super) const UNSEEN_MESSAGES: i16 = 88;
    pub(in super::super) const UNSEEN_BYTES: i16 = 92;
    /// Slot of the proxy whose socket it is; 0 for an application's.
    pub(in super::super) const OWNER: i16 = 96;
    /// What TCP counts as bytes of a connection though it is none: SYN and FIN, by who has connected.
    pub(in super::super) const UNCOUNTED: i16 = 100;
    pub(in super::super) const BYTES: i16 = 104;

    pub(in super::super) const UNCOUNTED_ACCEPTED: i32 = 2;
    pub(in super::super) const UNCOUNTED_CONNECTED: i32 = 3;

    /// Nothing was sent yet.
    pub(in super::super) const UNDECIDED: i32 = 0;
    /// What is sent goes to the other end directly.
    pub(in super::super) const BYPASS: i32 = 1;
    /// What is sent goes through TCP, for ever.
    pub(in super::super) const TCP: i32 = 2;
}

/// What the connecting end offers to the accepting one, under the key of the latter.
pub(super) mod pair {
    pub(in super::super) const ACTIVE_SOCKET: i16 = 0;
    /// Zero until the accepting end is captured, too.
    pub(in super::super) const PASSIVE_SOCKET: i16 = 8;
    pub(in super::super) const SLOT: i16 = 16;
    /// Why the connection is ours: [`TO_LISTENER`] or [`FROM_PROXY`].
    pub(in super::super) const KIND: i16 = 20;
    pub(in super::super) const BYTES: i16 = 24;

    /// It goes to the address of a registered listener; which socket has accepted it is to be seen.
    pub(in super::super) const TO_LISTENER: i32 = 1;
    /// A registered proxy has made it.
    pub(in super::super) const FROM_PROXY: i32 = 2;
}

/// A registered process.
pub(super) mod process {
    /// Ticks (1/100 s) from boot to its start: a process of the same number has another one.
    pub(in super::super) const START: i16 = 0;
    pub(in super::super) const SLOT: i16 = 8;
    pub(in super::super) const BYTES: i16 = 16;
}

/// An address that a registered proxy listens on.
pub(super) mod listener {
    pub(in super::super) const COOKIE: i16 = 0;
    pub(in super::super) const ADDRESS: i16 = 8;
    pub(in super::super) const PORT: i16 = 24;
    pub(in super::super) const BYTES: i16 = 32;
}

/// The single value that control tells the programs its wishes by.
pub(super) mod settings {
    /// Where these four bytes are not all 0, every direction goes over to TCP.
    pub(in super::super) const OFF: usize = 0;
    /// 1: taken back.
    pub(in super::super) const DRAIN: usize = 0;
    /// 1: the kernel is short of memory for TCP.
    pub(in super::super) const PRESSED: usize = 1;
    /// From here a byte per port, 1: as above, for that port.
    pub(in super::super) const PORTS: usize = 8;
    pub(in super::super) const BYTES: usize = PORTS + 65536;
}

/// Counters of a proxy, 64 bits each, per CPU.
pub(super) mod counter {
    pub(in super::super) const CONNECTIONS_BYPASS: i16 = 0;
    pub(in super::super) const CONNECTIONS_TCP: i16 = 8;
    pub(in super::super) const BYTES_BYPASS: i16 = 16;
    pub(in super::super) const BYTES_TCP: i16 = 24;
    /// Directions that went over to TCP.
    pub(in super::super) const SWITCHED: i16 = 32;
    /// Connections that found no room in a map.
    pub(in super::super) const FULL: i16 = 40;
    pub(in super::super) const BYTES: i16 = 48;
}

/// An address as keys have it.
pub(super) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The key of a listener's address.
pub(super) fn listener_key(cookie: u64, address: SocketAddr) -> [u8; listener::BYTES as usize] {
    let mut bytes = [0; listener::BYTES as usize];
    put(&mut bytes, listener::COOKIE, &cookie.to_ne_bytes());
    put(&mut bytes, listener::ADDRESS, &address_bytes(address.ip()));
    put(&mut bytes, listener::PORT, &u32::from(address.port()).to_ne_bytes());
    bytes
}

/// Writes at an offset that the programs use, too.
pub(super) fn put(bytes: &mut [u8], at: i16, value: &[u8]) {
    bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
}

/// One end of a captured connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's.
    pub remote: SocketAddr,
    /// Cookie of the network namespace.
    pub namespace: u64,
}

/// Reads a key back.
pub(super) fn end_of(bytes: &[u8]) -> Option<End> {
    let word = |at: i16| Some(u32::from_ne_bytes(bytes.get(at as usize..)?.first_chunk().copied()?));
    let address = |at: i16| Some(Ipv6Addr::from(*bytes.get(at as usize..)?.first_chunk::<16>()?).to_canonical());
    let local = SocketAddr::new(address(key::LOCAL)?, word(key::LOCAL_PORT)? as u16);
    let remote = SocketAddr::new(address(key::REMOTE)?, word(key::REMOTE_PORT)? as u16);
    let namespace = u64::from_ne_bytes(bytes.get(key::COOKIE as usize..)?.first_chunk().copied()?);
    Some(End { local, remote, namespace })
}

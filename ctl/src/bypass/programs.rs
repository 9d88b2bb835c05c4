//! The two programs, in assembler.
//!
//! **sockops** runs at the events of all sockets of the cgroup, and finds the connections that are ours. The end that
//! connects comes first: it goes into the map of sockets, and offers itself under the key of the other end. The end
//! that accepts takes the offer. So the latter knows of the former when it is established, and the former learns of the
//! latter at its first message.
//!
//! **sk_msg** runs at each message that a captured socket sends, and gives it to the other end's queue or lets TCP have
//! it. A direction may go over from the queue to TCP, once, and never back: a reader takes the queue first.

use meshring_core::limits::{BYPASS_MESSAGES_MAX, BYPASS_UNREAD_BYTES_MAX};

use super::{
    assembler::{
        Assembler, Byte, Double,
        Helper::{
            GetCurrentTask, GetNetnsCookie, MapDelete, MapLookup, MapUpdate, MsgRedirectHash, ProbeReadKernel,
            SkStorageGet, SockHashUpdate, SockOpsFlagsSet,
        },
        If::{AtMost, Equal, Greater, NotEqual},
        R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Register, Word,
    },
    layout::{counter, flow, key, listener, pair, process, settings},
    maps::Maps,
    offsets::Offsets,
    process_number::process_number,
};

/// Fields of `struct bpf_sock_ops` (include/uapi/linux/bpf.h).
mod sock_ops {
    pub(super) const OP: i16 = 0;
    /// Of `BPF_SOCK_OPS_STATE_CB` the new state.
    pub(super) const ARGUMENT_1: i16 = 8;
    pub(super) const FAMILY: i16 = 20;
    pub(super) const REMOTE_IP4: i16 = 24;
    pub(super) const LOCAL_IP4: i16 = 28;
    pub(super) const REMOTE_IP6: i16 = 32;
    pub(super) const LOCAL_IP6: i16 = 48;
    /// In network order.
    pub(super) const REMOTE_PORT: i16 = 64;
    /// In the machine's order.
    pub(super) const LOCAL_PORT: i16 = 68;
    pub(super) const FLAGS: i16 = 84;
    pub(super) const RCV_NXT: i16 = 100;
    pub(super) const SND_NXT: i16 = 104;
    pub(super) const BYTES_RECEIVED: i16 = 168;
    pub(super) const BYTES_ACKED: i16 = 176;
    pub(super) const SOCKET: i16 = 184;

    pub(super) const CONNECT: i32 = 3;
    pub(super) const ACTIVE_ESTABLISHED: i32 = 4;
    pub(super) const PASSIVE_ESTABLISHED: i32 = 5;
    pub(super) const STATE: i32 = 10;
    /// In `FLAGS`: run at changes of the state.
    pub(super) const FLAG_STATE: i32 = 4;
}

/// Fields of `struct sk_msg_md` and `struct bpf_sock` (likewise).
mod sk_msg {
    pub(super) const SIZE: i16 = 68;
    pub(super) const SOCKET: i16 = 72;
    pub(super) const SOCKET_STATE: i16 = 72;
    /// Into the queue of what the socket receives.
    pub(super) const INGRESS: i32 = 1;
    pub(super) const PASS: i32 = 1;
}

/// `BPF_SK_STORAGE_GET_F_CREATE`.
const CREATE: i32 = 1;
/// `BPF_EXIST` of an update.
const ONLY_EXISTING: i32 = 2;
const AF_INET: i32 = 2;
const TCP_ESTABLISHED: i32 = 1;
const TCP_CLOSE: i32 = 7;
/// Messages to a reader that keeps up between two looks at it.
const UNSEEN_MESSAGES: i32 = 15;
/// Nanoseconds of a tick of /proc/PID/stat.
const TICK_NS: i32 = 10_000_000;

// Where things are on the stack.
const OWN_KEY: i16 = -key::BYTES;
const PEER_KEY: i16 = OWN_KEY - key::BYTES;
const LISTENER: i16 = PEER_KEY - listener::BYTES;
const PAIR: i16 = LISTENER - pair::BYTES;
const SCRATCH: i16 = PAIR - 16;

/// The third word of an IPv4 address that is written as IPv6 (`::ffff:a.b.c.d`).
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
/// The first octet of an IPv4 address in memory, as a mask of a word; with it 127/8.
const FIRST_OCTET: u32 = u32::from_ne_bytes([0xff, 0, 0, 0]);
const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 0]);

/// `to = R10 + offset`.
fn stack(a: &mut Assembler, to: Register, offset: i16) {
    a.copy(to, R10).add(to, i32::from(offset));
}

/// `R0` = what a socket knows of itself, or zero.
fn storage(a: &mut Assembler, maps: &Maps, socket: Register, flags: i32) {
    a.map(R1, &maps.flows).copy(R2, socket).set(R3, 0).set(R4, flags).call(SkStorageGet);
}

/// Adds to a counter of the slot in a register, which survives; `amount` is an immediate or a register.
fn count(a: &mut Assembler, maps: &Maps, slot: Register, at: i16, amount: Amount, skip: &'static str) {
    a.store(Word, R10, SCRATCH, slot);
    stack(a, R2, SCRATCH);
    a.map(R1, &maps.counters).call(MapLookup).jump(skip, R0, Equal, 0).load(Double, R1, R0, at);
    match amount {
        Amount::One => a.add(R1, 1),
        Amount::Of(register) => a.add_register(R1, register),
    };
    a.store(Double, R0, at, R1).label(skip);
}

enum Amount {
    One,
    /// One that survives calls.
    Of(Register),
}

/// The program at a cgroup's sockets.
pub(super) fn sockops(maps: &Maps, offsets: &Offsets) -> Vec<u64> {
    let mut assembler = Assembler::default();
    let a = &mut assembler;
    a.copy(R6, R1).load(Double, R7, R6, sock_ops::SOCKET).jump("exit", R7, Equal, 0);
    a.load(Word, R1, R6, sock_ops::OP);
    a.jump("connect", R1, Equal, sock_ops::CONNECT);
    a.jump("state", R1, Equal, sock_ops::STATE);
    a.jump("established", R1, Equal, sock_ops::ACTIVE_ESTABLISHED);
    a.jump("established", R1, Equal, sock_ops::PASSIVE_ESTABLISHED);
    a.label("exit").set(R0, 1).exit();
    connect(a, maps, offsets);
    state(a, maps);
    established(a, maps);
    active(a, maps);
    passive(a, maps);
    a.label("full");
    count(a, maps, R9, counter::FULL, Amount::One, "full_counted");
    a.label("tcp").jump("exit", R9, Equal, 0);
    count(a, maps, R9, counter::CONNECTIONS_TCP, Amount::One, "tcp_counted");
    a.go("exit");
    assembler.finish()
}

/// In the process that connects, before the first packet: marks the socket if the process is a registered proxy.
fn connect(a: &mut Assembler, maps: &Maps, offsets: &Offsets) {
    a.label("connect");
    process_number(a, SCRATCH);
    a.store(Word, R10, SCRATCH, R0);
    stack(a, R2, SCRATCH);
    a.map(R1, &maps.processes).call(MapLookup).jump("exit", R0, Equal, 0).copy(R8, R0);
    // The number of a process that has gone may be another's by now; the time of its start is not.
    a.call(GetCurrentTask).copy(R3, R0).add(R3, offsets.task_group_leader).set(R2, 8);
    stack(a, R1, SCRATCH);
    a.call(ProbeReadKernel).jump("exit", R0, NotEqual, 0);
    a.load(Double, R3, R10, SCRATCH).add(R3, offsets.task_start_boottime).set(R2, 8);
    stack(a, R1, SCRATCH);
    a.call(ProbeReadKernel).jump("exit", R0, NotEqual, 0);
    a.load(Double, R1, R10, SCRATCH).divide(R1, TICK_NS).load(Double, R2, R8, process::START);
    a.jump_register("exit", R1, NotEqual, R2);
    storage(a, maps, R7, CREATE);
    a.jump("exit", R0, Equal, 0).load(Word, R1, R8, process::SLOT).store(Word, R0, flow::OWNER, R1);
    a.store_value(Word, R0, flow::UNCOUNTED, flow::UNCOUNTED_CONNECTED);
    a.go("exit");
}

/// A socket of ours has ended: what TCP has carried, and an offer that nobody has taken.
fn state(a: &mut Assembler, maps: &Maps) {
    a.label("state").load(Word, R1, R6, sock_ops::ARGUMENT_1).jump("exit", R1, NotEqual, TCP_CLOSE);
    storage(a, maps, R7, 0);
    a.jump("exit", R0, Equal, 0).copy(R8, R0).load(Word, R9, R8, flow::OWNER).jump("state_offer", R9, Equal, 0);
    a.load(Double, R7, R6, sock_ops::BYTES_RECEIVED).load(Double, R1, R6, sock_ops::BYTES_ACKED).add_register(R7, R1);
    // A reset takes less than a FIN.
    a.load(Word, R2, R8, flow::UNCOUNTED).jump_register("state_offer", R2, Greater, R7).subtract_register(R7, R2);
    count(a, maps, R9, counter::BYTES_TCP, Amount::Of(R7), "state_counted");
    a.label("state_offer").load(Word, R1, R8, flow::IS_ACTIVE).jump("exit", R1, Equal, 0);
    a.copy(R2, R8).map(R1, &maps.pairs).call(MapDelete).go("exit");
}

/// Both ends: `R9` = the slot of the socket's owner or zero, both keys on the stack; goes on where the other end can only
/// be on this host.
fn established(a: &mut Assembler, maps: &Maps) {
    a.label("established");
    storage(a, maps, R7, 0);
    a.set(R9, 0).jump("owner_known", R0, Equal, 0).load(Word, R9, R0, flow::OWNER);
    watch_state(a);
    a.label("owner_known");
    let both = |a: &mut Assembler, from: i16, own: i16, peer: i16| {
        a.load(Word, R1, R6, from);
        a.store(Word, R10, OWN_KEY + own, R1).store(Word, R10, PEER_KEY + peer, R1);
    };
    let constant = |a: &mut Assembler, at: i16, value: u32| {
        for base in [key::LOCAL, key::REMOTE] {
            a.store_value(Word, R10, OWN_KEY + base + at, value as i32);
            a.store_value(Word, R10, PEER_KEY + base + at, value as i32);
        }
    };
    a.load(Word, R1, R6, sock_ops::FAMILY).jump("ip6", R1, NotEqual, AF_INET);
    constant(a, 0, 0);
    constant(a, 4, 0);
    constant(a, 8, MAPPED);
    both(a, sock_ops::LOCAL_IP4, key::LOCAL + 12, key::REMOTE + 12);
    both(a, sock_ops::REMOTE_IP4, key::REMOTE + 12, key::LOCAL + 12);
    a.go("ports").label("ip6");
    for word in [0, 4, 8, 12] {
        both(a, sock_ops::LOCAL_IP6 + word, key::LOCAL + word, key::REMOTE + word);
        both(a, sock_ops::REMOTE_IP6 + word, key::REMOTE + word, key::LOCAL + word);
    }
    a.label("ports");
    both(a, sock_ops::LOCAL_PORT, key::LOCAL_PORT, key::REMOTE_PORT);
    a.load(Word, R1, R6, sock_ops::REMOTE_PORT).network_order(R1);
    a.store(Word, R10, OWN_KEY + key::REMOTE_PORT, R1).store(Word, R10, PEER_KEY + key::LOCAL_PORT, R1);
    both(a, sock_ops::SND_NXT, key::LOCAL_SEQUENCE, key::REMOTE_SEQUENCE);
    both(a, sock_ops::RCV_NXT, key::REMOTE_SEQUENCE, key::LOCAL_SEQUENCE);
    a.copy(R1, R6).call(GetNetnsCookie);
    a.store(Double, R10, OWN_KEY + key::COOKIE, R0).store(Double, R10, PEER_KEY + key::COOKIE, R0);
    same_host(a);
    a.load(Word, R1, R6, sock_ops::OP).jump("passive", R1, Equal, sock_ops::PASSIVE_ESTABLISHED);
}

/// Goes on where the addresses are the same, or both of 127/8. `proxy/src/worker/bypass.rs` has the same rule.
fn same_host(a: &mut Assembler) {
    let (local, remote) = (OWN_KEY + key::LOCAL, OWN_KEY + key::REMOTE);
    a.load(Double, R1, R10, local).load(Double, R2, R10, remote).jump_register("tcp", R1, NotEqual, R2);
    a.load(Word, R3, R10, local + 8).load(Word, R4, R10, remote + 8).jump_register("tcp", R3, NotEqual, R4);
    a.load(Word, R4, R10, local + 12).load(Word, R5, R10, remote + 12).jump_register("here", R4, Equal, R5);
    a.jump("tcp", R1, NotEqual, 0).jump32("tcp", R3, NotEqual, MAPPED);
    a.and32(R4, FIRST_OCTET).jump32("tcp", R4, NotEqual, LOOPBACK);
    a.and32(R5, FIRST_OCTET).jump32("tcp", R5, NotEqual, LOOPBACK);
    a.label("here");
}

/// Lets the program run at changes of the socket's state, too.
fn watch_state(a: &mut Assembler) {
    // No flag of other programs is ours to clear; the helper sets all of them.
    a.copy(R1, R6).load(Word, R2, R6, sock_ops::FLAGS);
    a.and(R2, !sock_ops::FLAG_STATE).add(R2, sock_ops::FLAG_STATE).call(SockOpsFlagsSet);
}

/// Leaves to `label` where control wants no bypass for the port in a register.
fn unless_off(a: &mut Assembler, maps: &Maps, port: Register, label: &'static str) {
    a.map_value(R1, &maps.settings).load(Word, R2, R1, settings::OFF as i16).jump(label, R2, NotEqual, 0);
    a.and(port, 0xffff).add_register(R1, port);
    a.load(Byte, R2, R1, settings::PORTS as i16).jump(label, R2, NotEqual, 0);
}

/// The end that has connected: offers itself if a proxy has made it, or if it goes to a listener of one.
fn active(a: &mut Assembler, maps: &Maps) {
    a.set(R8, pair::FROM_PROXY).jump("active_ours", R9, NotEqual, 0);
    a.set(R8, pair::TO_LISTENER);
    a.load(Double, R1, R10, OWN_KEY + key::COOKIE).store(Double, R10, LISTENER + listener::COOKIE, R1);
    for half in [0, 8] {
        a.load(Double, R1, R10, OWN_KEY + key::REMOTE + half);
        a.store(Double, R10, LISTENER + listener::ADDRESS + half, R1);
    }
    a.load(Word, R1, R10, OWN_KEY + key::REMOTE_PORT).store(Word, R10, LISTENER + listener::PORT, R1);
    a.store_value(Word, R10, LISTENER + listener::PORT + 4, 0);
    let look = |a: &mut Assembler| {
        stack(a, R2, LISTENER);
        a.map(R1, &maps.listeners).call(MapLookup).jump("active_listener", R0, NotEqual, 0);
    };
    look(a);
    // All of IPv4, then all of IPv6 with IPv4.
    a.store_value(Word, R10, LISTENER + listener::ADDRESS + 12, 0);
    look(a);
    a.store_value(Double, R10, LISTENER + listener::ADDRESS + 8, 0);
    a.store_value(Double, R10, LISTENER + listener::ADDRESS, 0);
    look(a);
    a.go("exit");
    a.label("active_listener").load(Word, R9, R0, 0);
    a.label("active_ours").load(Word, R3, R10, OWN_KEY + key::REMOTE_PORT);
    unless_off(a, maps, R3, "active_off");
    storage(a, maps, R7, CREATE);
    a.jump("active_full", R0, Equal, 0);
    fill_flow(a, flow::UNDECIDED, OWN_KEY + key::REMOTE_PORT, 1);
    a.store(Word, R0, flow::SLOT, R9).store(Word, R0, flow::KIND, R8);
    capture(a, maps);
    a.jump("active_full", R0, NotEqual, 0);
    a.store(Double, R10, PAIR + pair::ACTIVE_SOCKET, R7).store_value(Double, R10, PAIR + pair::PASSIVE_SOCKET, 0);
    a.store(Word, R10, PAIR + pair::SLOT, R9).store(Word, R10, PAIR + pair::KIND, R8);
    stack(a, R2, PEER_KEY);
    stack(a, R3, PAIR);
    a.map(R1, &maps.pairs).set(R4, 0).call(MapUpdate).jump("active_unoffered", R0, NotEqual, 0);
    watch_state(a);
    a.go("exit");
    // Captured, without an offer: its first message finds none, and it is TCP from there on.
    a.label("active_unoffered");
    count(a, maps, R9, counter::FULL, Amount::One, "active_unoffered_counted");
    a.go("exit");
    // The listener's end counts the connection, where there is one.
    a.label("active_full").jump("full", R8, Equal, pair::FROM_PROXY);
    count(a, maps, R9, counter::FULL, Amount::One, "active_full_counted");
    a.go("exit");
    a.label("active_off").jump("tcp", R8, Equal, pair::FROM_PROXY).go("exit");
}

/// The end that has accepted: takes the offer, if it is made to it.
fn passive(a: &mut Assembler, maps: &Maps) {
    a.label("passive");
    stack(a, R2, OWN_KEY);
    a.map(R1, &maps.pairs).call(MapLookup).jump("tcp", R0, Equal, 0);
    // All of it at once: when the other end closes, the memory may soon be another offer's.
    for word in (0..pair::BYTES).step_by(8) {
        a.load(Double, R1, R0, word).store(Double, R10, PAIR + word, R1);
    }
    // An offer to a listener's address that another process's socket has accepted: that one has no owner.
    a.load(Word, R1, R10, PAIR + pair::KIND).jump("passive_ours", R1, Equal, pair::FROM_PROXY);
    a.jump("exit", R9, Equal, 0);
    a.label("passive_ours").load(Word, R8, R10, PAIR + pair::SLOT);
    storage(a, maps, R7, CREATE);
    a.jump("full", R0, Equal, 0);
    fill_flow(a, flow::BYPASS, OWN_KEY + key::LOCAL_PORT, 0);
    a.load(Double, R1, R10, PAIR + pair::ACTIVE_SOCKET).store(Double, R0, flow::PEER_SOCKET, R1);
    a.load(Word, R1, R10, PAIR + pair::KIND).store(Word, R0, flow::KIND, R1);
    a.copy(R1, R8).jump("passive_slot", R9, Equal, 0).copy(R1, R9);
    a.label("passive_slot").store(Word, R0, flow::SLOT, R1);
    capture(a, maps);
    a.jump("passive_full", R0, NotEqual, 0);
    // By the key, not by the place: an offer that is gone stays gone.
    a.store(Double, R10, PAIR + pair::PASSIVE_SOCKET, R7);
    stack(a, R2, OWN_KEY);
    stack(a, R3, PAIR);
    a.map(R1, &maps.pairs).set(R4, ONLY_EXISTING).call(MapUpdate).jump("exit", R0, NotEqual, 0);
    // Between two proxies the connection is one of each.
    count(a, maps, R8, counter::CONNECTIONS_BYPASS, Amount::One, "passive_counted");
    a.jump("exit", R9, Equal, 0).jump_register("exit", R9, Equal, R8);
    count(a, maps, R9, counter::CONNECTIONS_BYPASS, Amount::One, "passive_counted_twice");
    a.go("exit");
    a.label("passive_full").jump("full", R9, NotEqual, 0);
    count(a, maps, R8, counter::FULL, Amount::One, "passive_full_counted");
    a.go("exit");
}

/// Fills the flow at `R0`, but for owner, slot and kind.
fn fill_flow(a: &mut Assembler, state: i32, port_at: i16, is_active: i32) {
    for word in (0..key::BYTES).step_by(8) {
        a.load(Double, R1, R10, PEER_KEY + word).store(Double, R0, flow::PEER_KEY + word, R1);
    }
    a.store_value(Double, R0, flow::PEER_SOCKET, 0).store_value(Word, R0, flow::STATE, state);
    a.load(Word, R1, R10, port_at).store(Word, R0, flow::PORT, R1);
    a.store_value(Word, R0, flow::MESSAGES, 0).store_value(Word, R0, flow::IS_ACTIVE, is_active);
    a.store_value(Double, R0, flow::UNSEEN_MESSAGES, 0);
}

/// Puts the socket into the map; `R0` is 0 where that went well.
fn capture(a: &mut Assembler, maps: &Maps) {
    stack(a, R3, OWN_KEY);
    a.copy(R1, R6).map(R2, &maps.sockets).set(R4, 0).call(SockHashUpdate);
}

/// The program at each message of a captured socket.
pub(super) fn sk_msg(maps: &Maps, offsets: &Offsets) -> Vec<u64> {
    let mut assembler = Assembler::default();
    let a = &mut assembler;
    a.copy(R6, R1).load(Double, R7, R6, sk_msg::SOCKET);
    storage(a, maps, R7, 0);
    a.jump("pass", R0, Equal, 0).copy(R8, R0);
    a.load(Word, R1, R8, flow::STATE).jump("pass", R1, Equal, flow::TCP);
    // After an end on either side only TCP knows the right error: the other one may have closed its socket, or just its half.
    a.load(Word, R1, R7, sk_msg::SOCKET_STATE).jump("to_tcp", R1, NotEqual, TCP_ESTABLISHED);
    a.load(Word, R3, R8, flow::PORT);
    unless_off(a, maps, R3, "to_tcp");
    a.load(Word, R1, R8, flow::STATE).jump("decided", R1, Equal, flow::BYPASS);
    // The first message of the end that has connected: is the other end captured, too?
    a.map(R1, &maps.pairs).copy(R2, R8).call(MapLookup).jump("to_tcp", R0, Equal, 0);
    a.load(Double, R1, R0, pair::PASSIVE_SOCKET).jump("to_tcp", R1, Equal, 0);
    a.store(Double, R8, flow::PEER_SOCKET, R1).store_value(Word, R8, flow::STATE, flow::BYPASS);
    a.map(R1, &maps.pairs).copy(R2, R8).call(MapDelete);
    a.label("decided");
    // The kernel queues without a bound. What the other end has not read yet says when it is enough: half of what it would
    // take from TCP, which must find room behind it, or the first segments would be dropped and sent again after 200 ms.
    // A reader that keeps up is looked at now and then only.
    a.load(Word, R9, R6, sk_msg::SIZE);
    a.load(Word, R2, R8, flow::MESSAGES).add(R2, 1).store(Word, R8, flow::MESSAGES, R2);
    a.load(Word, R1, R8, flow::UNSEEN_MESSAGES).jump("look", R1, Equal, 0);
    a.load(Word, R2, R8, flow::UNSEEN_BYTES).jump_register("look", R9, Greater, R2);
    a.subtract_register(R2, R9).store(Word, R8, flow::UNSEEN_BYTES, R2);
    a.add(R1, -1).store(Word, R8, flow::UNSEEN_MESSAGES, R1).go("redirect");
    a.label("look");
    look_at_reader(a, offsets);
    a.label("redirect");
    a.copy(R1, R6).map(R2, &maps.sockets).copy(R3, R8).set(R4, sk_msg::INGRESS).call(MsgRedirectHash);
    // The other end has closed its socket: TCP answers as it would.
    a.jump("to_tcp", R0, NotEqual, sk_msg::PASS);
    a.load(Word, R7, R8, flow::SLOT);
    count(a, maps, R7, counter::BYTES_BYPASS, Amount::Of(R9), "pass");
    a.set(R0, sk_msg::PASS).exit();
    a.label("to_tcp").load(Word, R9, R8, flow::STATE).store_value(Word, R8, flow::STATE, flow::TCP);
    a.load(Word, R7, R8, flow::SLOT).jump("to_tcp_undecided", R9, Equal, flow::UNDECIDED);
    a.label("to_tcp_switched");
    count(a, maps, R7, counter::SWITCHED, Amount::One, "switched");
    a.go("pass");
    // Where the other end is captured, too, that has counted the connection; so has a listener's end.
    a.label("to_tcp_undecided").map(R1, &maps.pairs).copy(R2, R8).call(MapLookup).jump("to_tcp_alone", R0, Equal, 0);
    a.load(Double, R1, R0, pair::PASSIVE_SOCKET).jump("to_tcp_switched", R1, NotEqual, 0);
    a.label("to_tcp_alone").load(Word, R1, R8, flow::KIND).jump("pass", R1, NotEqual, pair::FROM_PROXY);
    count(a, maps, R7, counter::CONNECTIONS_TCP, Amount::One, "undecided_counted");
    a.go("pass");
    assembler.finish()
}

/// Whether the reader of the flow at `R8` takes a message of `R9` bytes more, and how many without another look. One that has
/// something unread is looked at at each message.
fn look_at_reader(a: &mut Assembler, offsets: &Offsets) {
    let peer_field = |a: &mut Assembler, offset: i32| {
        a.load(Double, R3, R8, flow::PEER_SOCKET).add(R3, offset).set(R2, 4);
        stack(a, R1, SCRATCH);
        a.call(ProbeReadKernel).jump("to_tcp", R0, NotEqual, 0);
    };
    peer_field(a, offsets.sock_rcvbuf);
    a.load(Word, R7, R10, SCRATCH).shift_right(R7, 1);
    a.jump("bounded", R7, AtMost, BYPASS_UNREAD_BYTES_MAX as i32).set(R7, BYPASS_UNREAD_BYTES_MAX as i32);
    a.label("bounded");
    peer_field(a, offsets.sock_rmem_alloc);
    a.load(Word, R1, R10, SCRATCH).set(R3, 0).jump("unread", R1, NotEqual, 0);
    a.store_value(Word, R8, flow::MESSAGES, 1).set(R3, UNSEEN_MESSAGES);
    a.label("unread").load(Word, R2, R8, flow::MESSAGES).jump("to_tcp", R2, Greater, BYPASS_MESSAGES_MAX as i32);
    a.add_register(R1, R9).jump_register("to_tcp", R1, Greater, R7).subtract_register(R7, R1);
    a.store(Word, R8, flow::UNSEEN_BYTES, R7).store(Word, R8, flow::UNSEEN_MESSAGES, R3);
}

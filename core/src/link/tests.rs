//! One message per packet with its descriptors, or an error that closes the link.

use std::{
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, send as send_raw,
    sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use super::{
    Hello, PROTOCOL, ToControl, ToProxy,
    channel::{LinkError, receive, send},
};
use crate::{
    id::Generation,
    limits::{LINK_FDS_MAX, LINK_MESSAGE_BYTES_MAX},
    snapshot::{layout::LAYOUT, page::PageWriter, region::sealed},
};

fn link() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair")
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        layout: LAYOUT,
        pid: 17,
        namespace: "default".into(),
        workload: "productpage".into(),
        workers: 2,
        driver: "io_uring".into(),
        listeners: vec!["outbound 127.0.0.1:15001".into()],
        generation: Generation(3),
        checksum: u64::MAX,
        service_account: None,
        bypass: true,
        join_token: None,
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Text(String);

#[test]
fn every_message_arrives_as_it_was_sent_and_in_order() {
    let (proxy, control) = link();
    let to_control = [
        ToControl::Hello(hello()),
        ToControl::Prepared { generation: Generation(u64::MAX) },
        ToControl::Refused { generation: Generation(4), reason: "checksum: \"corrupt\"\n".into() },
    ];
    for message in &to_control {
        send(&proxy, message, &[]).expect("sent");
    }
    for message in to_control {
        assert_eq!(receive::<ToControl>(&control).expect("received").0, message);
    }
    let to_proxy = [
        ToProxy::Welcome { active: Generation(0) },
        ToProxy::Rejected { reason: "protocol 2, ours is 1".into() },
        ToProxy::Prepare { generation: Generation(5) },
        ToProxy::Retire { below: Generation(2) },
    ];
    for message in to_proxy {
        send(&control, &message, &[]).expect("sent");
        assert_eq!(receive::<ToProxy>(&proxy).expect("received").0, message);
    }
}

#[test]
fn descriptors_travel_beside_the_message() {
    let (proxy, control) = link();
    let page = PageWriter::create(Generation(8)).expect("a page");
    let memfd = sealed("test", &[b"content"]).expect("a memfd");
    send(&control, &ToProxy::Welcome { active: Generation(8) }, &[page.fd().as_fd(), memfd.as_fd()]).expect("sent");
    drop(memfd);
    let (message, fds) = receive::<ToProxy>(&proxy).expect("received");
    assert_eq!(message, ToProxy::Welcome { active: Generation(8) });
    let [theirs, content]: [OwnedFd; 2] = fds.try_into().expect("two descriptors, in order");
    let theirs = crate::snapshot::page::PageReader::open(&theirs).expect("the page");
    page.commit(Generation(9));
    assert_eq!(theirs.active().load(), Generation(9));
    let mut text = [0; 7];
    rustix::io::pread(&content, &mut text, 0).expect("read");
    assert_eq!(&text, b"content");
    assert!(rustix::io::fcntl_getfd(&content).expect("a descriptor").contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn a_message_of_the_greatest_length_passes_and_a_longer_one_is_not_sent() {
    let (a, b) = link();
    // Two bytes are the quotation marks of JSON.
    let longest = Text("x".repeat(LINK_MESSAGE_BYTES_MAX - 2));
    send(&a, &longest, &[]).expect("sent");
    assert_eq!(receive::<Text>(&b).expect("received").0, longest);
    let refused = send(&a, &Text("x".repeat(LINK_MESSAGE_BYTES_MAX - 1)), &[]);
    assert!(matches!(refused, Err(LinkError::TooLong)));
    let page = PageWriter::create(Generation(0)).expect("a page");
    let three = [page.fd().as_fd(); LINK_FDS_MAX + 1];
    assert!(matches!(send(&a, &Text("x".into()), &three), Err(LinkError::TooLong)));
    // Nothing of either went out.
    send(&a, &Text("next".into()), &[]).expect("sent");
    assert_eq!(receive::<Text>(&b).expect("received").0, Text("next".into()));
}

#[test]
fn a_peer_that_sends_too_much_is_refused() {
    let (a, b) = link();
    let packet = vec![b' '; LINK_MESSAGE_BYTES_MAX + 1];
    assert_eq!(send_raw(&a, &packet, SendFlags::empty()), Ok(packet.len()));
    assert!(matches!(receive::<Text>(&b), Err(LinkError::TooLong)));
}

#[test]
fn too_many_descriptors_are_refused_and_none_leaks() {
    let (a, b) = link();
    let (mut read, write) = std::io::pipe().expect("a pipe");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [write.as_fd(); 8];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&a, &[IoSlice::new(b"\"x\"")], &mut ancillary, SendFlags::empty()).expect("sent");
    assert!(matches!(receive::<Text>(&b), Err(LinkError::TooLong)));
    drop(write);
    // If any copy of the writing end were left, this would wait for ever.
    let mut rest = Vec::new();
    read.read_to_end(&mut rest).expect("read");
    assert!(rest.is_empty());
}

#[test]
fn what_is_no_message_is_malformed_and_its_descriptors_are_closed() {
    let (a, b) = link();
    let packets: [&[u8]; 5] = [
        b"{",
        b"\xff\xfe",
        br#"{"type":"unknown"}"#,
        br#"{"type":"prepared"}"#,
        br#"{"type":"prepared","generation":-1}"#,
    ];
    for packet in packets {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [write.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&a, &[IoSlice::new(packet)], &mut ancillary, SendFlags::empty()).expect("sent");
        let refused = receive::<ToControl>(&b).expect_err("no message");
        assert!(matches!(refused, LinkError::Malformed(_)), "{refused}");
        assert!(refused.to_string().starts_with("message not understood: "));
        drop(write);
        assert_eq!(read.read(&mut [0]).expect("end of file"), 0);
    }
}

#[test]
fn unknown_fields_of_a_newer_peer_are_ignored() {
    let (a, b) = link();
    let packet = br#"{"type":"prepare","generation":7,"hint":"new in a later version"}"#;
    send_raw(&a, packet, SendFlags::empty()).expect("sent");
    assert_eq!(receive::<ToProxy>(&b).expect("received").0, ToProxy::Prepare { generation: Generation(7) });
}

#[test]
fn a_closed_peer_is_told_from_an_error() {
    let (a, b) = link();
    send(&a, &Text("last".into()), &[]).expect("sent");
    drop(a);
    assert_eq!(receive::<Text>(&b).expect("what was sent before still arrives").0, Text("last".into()));
    assert!(matches!(receive::<Text>(&b), Err(LinkError::Closed)));
    assert!(matches!(send(&b, &Text("x".into()), &[]), Err(LinkError::Closed)));
}

#[test]
fn a_non_blocking_link_says_later() {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
    let later = receive::<Text>(&b).expect_err("nothing there");
    assert!(later.would_block(), "{later}");
    let full = loop {
        if let Err(error) = send(&a, &Text("x".repeat(1000)), &[]) {
            break error;
        }
    };
    assert!(full.would_block(), "{full}");
    // Whole messages only: what did arrive can be read.
    assert_eq!(receive::<Text>(&b).expect("received").0, Text("x".repeat(1000)));
    assert!(!LinkError::Closed.would_block() && !LinkError::TooLong.would_block());
}

//! Records of a kernel TLS socket that are no data: their type travels as a control message beside the bytes.

use std::{io, mem, os::fd::RawFd, ptr};

use rustls::ContentType;

const SPACE_BYTES: usize = 64;

/// Space for one control message with one byte in it, aligned as the kernel wants it.
#[repr(C, align(8))]
struct ControlSpace([u8; SPACE_BYTES]);

// SAFETY: CMSG_SPACE computes a length, it reads nothing.
const _: () = assert!(unsafe { libc::CMSG_SPACE(1) } as usize <= SPACE_BYTES && align_of::<libc::cmsghdr>() <= 8);

/// What [`receive_record`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes of records of one type. Data: of as many records as there are and fit. Others: of one record; what
    /// did not fit comes with the next call, under the same type.
    Record(ContentType, usize),
    /// The stream has ended.
    End,
}

/// Takes what comes next, whatever it is, without waiting. `WouldBlock`: no whole record is there. EBADMSG: a record
/// that does not open.
pub(crate) fn receive_record(fd: RawFd, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = ControlSpace([0; SPACE_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: zeroes are a valid msghdr: no name, no parts, no control messages.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.0.as_mut_ptr().cast();
    message.msg_controllen = SPACE_BYTES as _;
    // SAFETY: the header points to one part, `bytes`, and to the control space, all of which outlive the call and are
    // described with their lengths.
    let count = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has filled in the header and as much of the control space as `msg_controllen` now says.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        // Data always comes with its type, even an empty record.
        return if count == 0 {
            Ok(Received::End)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the socket has no kernel TLS to receive with"))
        };
    }
    // SAFETY: CMSG_FIRSTHDR has found a whole header in the control space, which is aligned for it.
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    if (level, kind) != (libc::SOL_TLS, libc::TLS_GET_RECORD_TYPE) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a control message that is not about TLS"));
    }
    // SAFETY: a message of this type has one byte behind its header, in the control space.
    let content = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header)) };
    Ok(Received::Record(ContentType::from(content), count))
}

/// Sends a record of the given type, of at most 16 KiB, without waiting. `WouldBlock`: the socket is full, and nothing
/// was taken. How many bytes were taken: all of them, for a message as short as an alert or a KeyUpdate.
pub(crate) fn send_record(fd: RawFd, content: ContentType, bytes: &[u8]) -> io::Result<usize> {
    let mut space = ControlSpace([0; SPACE_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: zeroes are a valid msghdr: no name, no parts, no control messages.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE and CMSG_LEN compute lengths, they read nothing.
    let (space_bytes, message_bytes) = unsafe { (libc::CMSG_SPACE(1), libc::CMSG_LEN(1)) };
    message.msg_controllen = space_bytes as _;
    // SAFETY: the control space holds a header and one byte behind it (checked above at compile time), is aligned for
    // them, and is ours alone.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = message_bytes as _;
        libc::CMSG_DATA(header).write(u8::from(content));
    }
    // SAFETY: the header points to one part, `bytes`, which the kernel only reads, and to the control space; all of them
    // outlive the call.
    let count = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

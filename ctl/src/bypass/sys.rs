//! bpf(2), typed: maps, programs and attachments as descriptors that undo themselves when they are closed. Nothing is
//! pinned, so the kernel takes everything back when the process ends, however it ends.
//!
//! The layouts are those of `union bpf_attr` in the kernel's `include/uapi/linux/bpf.h`.

#![expect(unsafe_code, reason = "no safe crate makes this system call without a C toolchain or an ELF file")]

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Commands of bpf(2) that we use.
mod command {
    pub(super) const MAP_CREATE: i32 = 0;
    pub(super) const MAP_LOOKUP: i32 = 1;
    pub(super) const MAP_UPDATE: i32 = 2;
    pub(super) const MAP_DELETE: i32 = 3;
    pub(super) const MAP_NEXT_KEY: i32 = 4;
    pub(super) const PROG_LOAD: i32 = 5;
    pub(super) const PROG_ATTACH: i32 = 8;
    pub(super) const PROG_FD_BY_ID: i32 = 13;
    pub(super) const INFO_BY_FD: i32 = 15;
    pub(super) const PROG_QUERY: i32 = 16;
    pub(super) const BTF_LOAD: i32 = 18;
    pub(super) const LINK_CREATE: i32 = 28;
}

/// `enum bpf_attach_type`: on a cgroup, at the events of its sockets.
const ATTACH_SOCK_OPS: u32 = 3;
/// `enum bpf_attach_type`: on a map of sockets, at each message that they send.
const ATTACH_SK_MSG: u32 = 7;
/// Shows also what ancestors of a cgroup have attached.
const QUERY_EFFECTIVE: u32 = 1;
/// Bytes of the verifier's log that an error keeps: its end says what is wrong.
const LOG_BYTES: usize = 256 << 10;
/// Longest name of a program or map, the closing zero included.
const NAME_BYTES: usize = 16;

/// `enum bpf_map_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum MapType {
    Hash = 1,
    Array = 2,
    PercpuArray = 6,
    Sockhash = 18,
    SkStorage = 24,
}

/// `enum bpf_prog_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum ProgramType {
    SockOps = 13,
    SkMsg = 16,
}

/// What a map is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct MapSpec {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) entries_max: u32,
    /// `BPF_F_*`.
    pub(super) flags: u32,
}

/// A program that the kernel refuses, with the last lines of the verifier's log.
#[derive(Debug, thiserror::Error)]
#[error("{source}{}", if self.log.is_empty() { String::new() } else { format!("; the verifier says: {}", self.log) })]
pub(super) struct LoadError {
    #[source]
    pub(super) source: io::Error,
    pub(super) log: String,
}

/// Attributes as the kernel reads them: zeroes behind what a command uses.
#[repr(C, align(8))]
struct Attributes([u8; 144]);

impl Attributes {
    fn new() -> Self {
        Self([0; 144])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd() as u32)
    }

    fn name(mut self, at: usize, name: &str) -> Self {
        let name = &name.as_bytes()[..name.len().min(NAME_BYTES - 1)];
        self.0[at..at + name.len()].copy_from_slice(name);
        self
    }

    fn read_u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

/// # Safety
/// Every pointer in the attributes is valid for what the command does with it, until this returns.
unsafe fn bpf(command: i32, attributes: &mut Attributes) -> io::Result<i64> {
    let size = size_of::<Attributes>();
    // SAFETY: the attributes live for the call and are as large as said; their pointers are the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_mut_ptr(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As [`bpf`]; and the command returns a new descriptor.
unsafe fn bpf_fd(command: i32, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes)? };
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec as all of bpf(2)'s.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn address<T: ?Sized>(data: &T) -> u64 {
    std::ptr::from_ref(data).cast::<u8>() as u64
}

fn address_mut<T: ?Sized>(data: &mut T) -> u64 {
    std::ptr::from_mut(data).cast::<u8>() as u64
}

/// A map; it lives as long as a descriptor or a program refers to it.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    key_bytes: usize,
    value_bytes: usize,
    pub(super) spec: MapSpec,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Map {
    /// Creates a map.
    pub(super) fn create(spec: MapSpec) -> io::Result<Self> {
        let btf = match spec.kind {
            // The kernel wants to know the type of what sockets store.
            MapType::SkStorage => Some(load_btf(spec.value_bytes)?),
            _ => None,
        };
        let mut attributes = Attributes::new()
            .u32(0, spec.kind as u32)
            .u32(4, spec.key_bytes)
            .u32(8, spec.value_bytes)
            .u32(12, spec.entries_max)
            .u32(16, spec.flags)
            .name(28, spec.name);
        if let Some(btf) = &btf {
            attributes = attributes.fd(48, btf.as_fd()).u32(52, BTF_KEY).u32(56, BTF_VALUE);
        }
        // SAFETY: no pointers; the command makes a descriptor.
        let fd = unsafe { bpf_fd(command::MAP_CREATE, &mut attributes)? };
        let values = match spec.kind {
            MapType::PercpuArray => possible_cpus()?,
            _ => 1,
        };
        let value_bytes = (spec.value_bytes as usize).next_multiple_of(if values > 1 { 8 } else { 1 }) * values;
        Ok(Self { fd, key_bytes: spec.key_bytes as usize, value_bytes, spec })
    }

    /// Of a value as it is read and written.
    pub(super) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Puts a value under a key, over another one or not.
    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.key_bytes, self.value_bytes), "sizes of {}", self.spec.name);
        let mut attributes = Attributes::new().fd(0, self.as_fd()).u64(8, address(key)).u64(16, address(value));
        // SAFETY: the kernel reads as many bytes of key and value as the map was made for, which the assertion has
        // compared.
        unsafe { bpf(command::MAP_UPDATE, &mut attributes).map(drop) }
    }

    /// The value under a key; of a map per CPU those of all CPUs, one after the other.
    pub(super) fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        assert_eq!(key.len(), self.key_bytes, "size of a key of {}", self.spec.name);
        let mut value = vec![0; self.value_bytes];
        let mut attributes =
            Attributes::new().fd(0, self.as_fd()).u64(8, address(key)).u64(16, address_mut(value.as_mut_slice()));
        // SAFETY: the kernel reads a key of the asserted size and writes a value of the size that the vector has.
        match unsafe { bpf(command::MAP_LOOKUP, &mut attributes) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a key out; one that is not there is no error.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<()> {
        assert_eq!(key.len(), self.key_bytes, "size of a key of {}", self.spec.name);
        let mut attributes = Attributes::new().fd(0, self.as_fd()).u64(8, address(key));
        // SAFETY: the kernel reads a key of the asserted size.
        match unsafe { bpf(command::MAP_DELETE, &mut attributes) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// At most so many keys. While others change the map, some may be missed or come twice.
    pub(super) fn keys(&self, at_most: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while keys.len() < at_most {
            let mut next = vec![0; self.key_bytes];
            let last = keys.last().map_or(0, |key| address(key.as_slice()));
            let mut attributes =
                Attributes::new().fd(0, self.as_fd()).u64(8, last).u64(16, address_mut(next.as_mut_slice()));
            // SAFETY: both keys have the size of the map's, and a null pointer asks for the first one.
            match unsafe { bpf(command::MAP_NEXT_KEY, &mut attributes) } {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    /// How many entries there are; `None` where there is no going through them (storage of sockets), or they are always there
    /// (arrays). While others change the map, some may be missed.
    pub(super) fn entries(&self) -> io::Result<Option<usize>> {
        match self.spec.kind {
            MapType::Hash | MapType::Sockhash => {
                let keys: HashSet<_> = self.keys(self.spec.entries_max as usize)?.into_iter().collect();
                Ok(Some(keys.len()))
            }
            _ => Ok(None),
        }
    }
}

/// CPUs that a map per CPU has values for, from `/sys/devices/system/cpu/possible` (`0-3`, `0,2-5`).
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::Error::other(format!("cpu/possible says {text:?}")))
}

/// Type number of the key in what [`load_btf`] makes.
const BTF_KEY: u32 = 1;
/// Type number of the value there.
const BTF_VALUE: u32 = 3;

/// Tells the kernel the types of a storage's key (int) and value (an array of 64-bit words). The format is described in
/// the kernel's `Documentation/bpf/btf.rst`.
fn load_btf(value_bytes: u32) -> io::Result<OwnedFd> {
    const KIND_INT: u32 = 1 << 24;
    const KIND_ARRAY: u32 = 3 << 24;
    let (name_int, name_word) = (1, 5);
    let strings = b"\0int\0word\0";
    let types: [u32; 14] = [
        name_int,
        KIND_INT,
        4,
        32, // 1: int
        name_word,
        KIND_INT,
        8,
        64, // 2: word
        0,
        KIND_ARRAY,
        0,
        2,
        1,
        value_bytes / 8, // 3: words
    ];
    let types_bytes = (types.len() * 4) as u32;
    let mut blob = Vec::new();
    // Magic, version 1, flags.
    blob.extend_from_slice(&0xEB9F_u16.to_ne_bytes());
    blob.extend_from_slice(&[1, 0]);
    for word in [24, 0, types_bytes, types_bytes, strings.len() as u32] {
        blob.extend_from_slice(&u32::to_ne_bytes(word));
    }
    types.iter().for_each(|word| blob.extend_from_slice(&word.to_ne_bytes()));
    blob.extend_from_slice(strings);
    let mut attributes = Attributes::new().u64(0, address(blob.as_slice())).u32(16, blob.len() as u32);
    // SAFETY: the kernel reads the blob, which has the length that is said; the command makes a descriptor.
    unsafe { bpf_fd(command::BTF_LOAD, &mut attributes) }
}

/// A program that the verifier has accepted.
#[derive(Debug)]
pub(super) struct Program {
    fd: OwnedFd,
    /// The kernel's number of it.
    pub(super) id: u32,
    pub(super) name: &'static str,
    pub(super) instructions: usize,
}

impl Program {
    /// Loads a program of encoded instructions (`struct bpf_insn`).
    pub(super) fn load(name: &'static str, kind: ProgramType, instructions: &[u64]) -> Result<Self, LoadError> {
        let unlogged = |source| LoadError { source, log: String::new() };
        let fd = match load(name, kind, instructions, None) {
            Ok(fd) => fd,
            Err(source) => {
                // Once more, for the reason: a log costs time, which the usual case does not need.
                let mut log = vec![0; LOG_BYTES];
                let source = load(name, kind, instructions, Some(&mut log)).err().unwrap_or(source);
                return Err(LoadError { source, log: tail(&log) });
            }
        };
        let id = program_info(fd.as_fd()).map_err(unlogged)?.0;
        Ok(Self { fd, id, name, instructions: instructions.len() })
    }

    /// Runs it at every message of the sockets in a map, for as long as the map has a descriptor; sockets that are in
    /// it by then keep the program to their end.
    pub(super) fn attach_to_sockets(&self, sockets: &Map) -> io::Result<()> {
        let mut attributes = Attributes::new().fd(0, sockets.as_fd()).fd(4, self.fd.as_fd()).u32(8, ATTACH_SK_MSG);
        // SAFETY: no pointers.
        unsafe { bpf(command::PROG_ATTACH, &mut attributes).map(drop) }
    }

    /// Runs it at the events of a cgroup's sockets, beside others, until the descriptor that comes back is closed.
    pub(super) fn attach_to_cgroup(&self, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let mut attributes = Attributes::new().fd(0, self.fd.as_fd()).fd(4, cgroup).u32(8, ATTACH_SOCK_OPS);
        // SAFETY: no pointers; the command makes a descriptor.
        unsafe { bpf_fd(command::LINK_CREATE, &mut attributes) }
    }
}

fn load(name: &str, kind: ProgramType, instructions: &[u64], log: Option<&mut Vec<u8>>) -> io::Result<OwnedFd> {
    // The helpers that we call want a licence that says so.
    let licence = CString::from(c"GPL");
    let mut attributes = Attributes::new()
        .u32(0, kind as u32)
        .u32(4, instructions.len() as u32)
        .u64(8, address(instructions))
        .u64(16, licence.as_ptr() as u64)
        .name(48, name);
    if kind == ProgramType::SockOps {
        attributes = attributes.u32(68, ATTACH_SOCK_OPS);
    }
    if let Some(log) = log {
        attributes = attributes.u32(24, 1).u32(28, log.len() as u32).u64(32, address_mut(log.as_mut_slice()));
    }
    // SAFETY: instructions, licence and log outlive the call and have the lengths that are said; the command makes a
    // descriptor.
    unsafe { bpf_fd(command::PROG_LOAD, &mut attributes) }
}

/// The end of a log in one line.
fn tail(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("processed ")).collect();
    lines[lines.len().saturating_sub(12)..].join(" | ")
}

/// Number and name of a program.
fn program_info(fd: BorrowedFd<'_>) -> io::Result<(u32, String)> {
    // Of `struct bpf_prog_info` the id is at 4, the name at 64.
    let mut info = [0_u8; 128];
    let mut attributes = Attributes::new().fd(0, fd).u32(4, info.len() as u32).u64(8, address_mut(info.as_mut_slice()));
    // SAFETY: the kernel writes at most the length that is said.
    unsafe { bpf(command::INFO_BY_FD, &mut attributes)? };
    let id = u32::from_ne_bytes([info[4], info[5], info[6], info[7]]);
    let name = info[64..64 + NAME_BYTES].split(|&byte| byte == 0).next().unwrap_or_default();
    Ok((id, String::from_utf8_lossy(name).into_owned()))
}

/// The sockops programs that run for a cgroup, those of its ancestors included: numbers and names. One that has gone
/// meanwhile is left out.
pub(super) fn sock_ops_of(cgroup: BorrowedFd<'_>) -> io::Result<Vec<(u32, String)>> {
    let mut ids = [0_u32; 64];
    let mut attributes = Attributes::new()
        .fd(0, cgroup)
        .u32(4, ATTACH_SOCK_OPS)
        .u32(8, QUERY_EFFECTIVE)
        .u64(16, address_mut(ids.as_mut_slice()))
        .u32(24, ids.len() as u32);
    // SAFETY: the kernel writes at most as many numbers as there is room for.
    unsafe { bpf(command::PROG_QUERY, &mut attributes)? };
    let count = (attributes.read_u32(24) as usize).min(ids.len());
    Ok(ids[..count].iter().filter_map(|&id| program_by_id(id).ok()).collect())
}

fn program_by_id(id: u32) -> io::Result<(u32, String)> {
    let mut attributes = Attributes::new().u32(0, id);
    // SAFETY: no pointers; the command makes a descriptor.
    let fd = unsafe { bpf_fd(command::PROG_FD_BY_ID, &mut attributes)? };
    program_info(fd.as_fd())
}

/// A socket option of plain data; the vector has the length that the kernel has filled.
pub(super) fn socket_option(socket: BorrowedFd<'_>, level: i32, name: i32, bytes: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; bytes];
    let mut length = bytes as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, as many as the vector has.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(length as usize);
    Ok(value)
}

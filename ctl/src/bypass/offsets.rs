//! Where the kernel keeps the few fields that no helper shows, from its own description of its types
//! (`/sys/kernel/btf/vmlinux`, format in the kernel's `Documentation/bpf/btf.rst`). So nothing is compiled in for one
//! kernel.

use std::{fs, io};

/// Where every kernel with CONFIG_DEBUG_INFO_BTF describes itself.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Offsets in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offsets {
    /// `sk_rmem_alloc` of `struct sock`: bytes that it has received and nobody has read.
    pub(super) sock_rmem_alloc: i32,
    /// Of `struct sock`: bytes that it may have so; `SO_RCVBUF`.
    pub(super) sock_rcvbuf: i32,
    /// Of `struct task_struct`.
    pub(super) task_group_leader: i32,
    /// Of `struct task_struct`: nanoseconds from boot to the start.
    pub(super) task_start_boottime: i32,
}

/// The kernel does not say where things are.
#[derive(Debug, thiserror::Error)]
pub(super) enum OffsetsError {
    #[error("{KERNEL_TYPES}: {0} (a kernel with CONFIG_DEBUG_INFO_BTF describes its types there)")]
    Unreadable(#[from] io::Error),
    #[error("{KERNEL_TYPES} is malformed at byte {0}")]
    Malformed(usize),
    #[error("{KERNEL_TYPES} has no {0}")]
    Missing(&'static str),
}

impl Offsets {
    /// Of the running kernel.
    pub(super) fn of_this_kernel() -> Result<Self, OffsetsError> {
        let bytes = fs::read(KERNEL_TYPES)?;
        let types = Types::parse(&bytes)?;
        let offset = |structure, path: &[&str], name| types.offset(structure, path).ok_or(OffsetsError::Missing(name));
        Ok(Self {
            sock_rmem_alloc: offset("sock", &["sk_backlog", "rmem_alloc"], "sock.sk_backlog.rmem_alloc")?,
            sock_rcvbuf: offset("sock", &["sk_rcvbuf"], "sock.sk_rcvbuf")?,
            task_group_leader: offset("task_struct", &["group_leader"], "task_struct.group_leader")?,
            task_start_boottime: offset("task_struct", &["start_boottime"], "task_struct.start_boottime")?,
        })
    }
}

/// All types: for each where it begins, counted from 1.
struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    begins: Vec<usize>,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, OffsetsError> {
        let word = |at: usize| word(bytes, at).ok_or(OffsetsError::Malformed(at));
        let header = word(4)? as usize;
        let (types, types_bytes) = (header + word(8)? as usize, word(12)? as usize);
        let (strings, strings_bytes) = (header + word(16)? as usize, word(20)? as usize);
        let strings = bytes.get(strings..strings + strings_bytes).ok_or(OffsetsError::Malformed(16))?;
        let mut begins = vec![0];
        let (mut at, end) = (types, types + types_bytes);
        while at < end {
            begins.push(at);
            let info = word(at + 4)?;
            let count = (info & 0xffff) as usize;
            // What follows the 12 bytes of each type.
            at += 12
                + match info >> 24 & 0x1f {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => count * 12,
                    6 | 13 => count * 8,
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return Err(OffsetsError::Malformed(at)),
                };
        }
        Ok(Self { bytes, strings, begins })
    }

    fn name(&self, at: usize) -> Option<&[u8]> {
        let from = self.strings.get(word(self.bytes, at)? as usize..)?;
        from.split(|&byte| byte == 0).next()
    }

    fn offset(&self, structure: &str, path: &[&str]) -> Option<i32> {
        let of_name = |&&at: &&usize| {
            let kind = word(self.bytes, at + 4).map_or(0, |info| info >> 24 & 0x1f);
            kind == KIND_STRUCT && self.name(at) == Some(structure.as_bytes())
        };
        let mut at = *self.begins[1..].iter().find(of_name)?;
        let mut bits = 0;
        for member in path {
            let (kind, offset) = self.member(at, member)?;
            bits += offset;
            at = self.begins.get(kind).copied().unwrap_or(0);
        }
        i32::try_from(bits / 8).ok()
    }

    /// Type and offset in bits of a member, also where it is inside of an unnamed structure.
    fn member(&self, at: usize, wanted: &str) -> Option<(usize, u32)> {
        let info = word(self.bytes, at + 4)?;
        if !matches!(info >> 24 & 0x1f, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let with_sizes = info >> 31 == 1;
        for index in 0..(info & 0xffff) as usize {
            let member = at + 12 + index * 12;
            let kind = word(self.bytes, member + 4)? as usize;
            let offset = word(self.bytes, member + 8)? & if with_sizes { 0x00ff_ffff } else { u32::MAX };
            let name = self.name(member)?;
            if name == wanted.as_bytes() {
                return Some((kind, offset));
            }
            if name.is_empty()
                && let Some((kind, inner)) = self.member(*self.begins.get(kind)?, wanted)
            {
                return Some((kind, offset + inner));
            }
        }
        None
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_is_an_error_at_every_length() {
        let Ok(bytes) = fs::read(KERNEL_TYPES) else {
            println!("skipped: this kernel has no {KERNEL_TYPES}");
            return;
        };
        assert!(Types::parse(&bytes).is_ok_and(|types| types.offset("sock", &["sk_backlog", "rmem_alloc"]).is_some()));
        for length in [0, 4, 23, 24, 1000, bytes.len() / 2, bytes.len() - 1] {
            assert!(Types::parse(&bytes[..length]).is_err(), "cut at {length}");
        }
    }
}

//! Processes have a number in each PID namespace that they are in, and control knows them by that in its own: a container has one.

use std::{fs, os::unix::fs::MetadataExt as _};

use rustix::fs::{major, minor};

use super::assembler::{
    Assembler,
    Helper::{GetCurrentPidTgid, GetNsCurrentPidTgid},
    If::NotEqual,
    R0, R1, R2, R3, R4, R10, Word,
};

/// What the kernel knows a PID namespace by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PidNamespace {
    /// Of the file that stands for it, as the kernel writes it: `MKDEV` has 20 bits for the minor number.
    device: u64,
    inode: u64,
}

impl PidNamespace {
    /// This process's. `None` without /proc, where the whole machine's is the best guess.
    fn own() -> Option<Self> {
        let file = fs::metadata("/proc/self/ns/pid").ok()?;
        let device = u64::from(major(file.dev())) << 20 | u64::from(minor(file.dev()));
        Some(Self { device, inode: file.ino() })
    }
}

/// `R0` = the current process's number in this process's PID namespace, or, of one that is in another, its number on the whole machine.
/// 8 bytes of the stack at `scratch` are used.
pub(super) fn process_number(a: &mut Assembler, scratch: i16) {
    if let Some(PidNamespace { device, inode }) = PidNamespace::own() {
        a.set_wide(R1, device).set_wide(R2, inode).copy(R3, R10).add(R3, i32::from(scratch)).set(R4, 8);
        a.call(GetNsCurrentPidTgid).jump("process_elsewhere", R0, NotEqual, 0);
        // `struct bpf_pidns_info`: the thread's number, then the process's.
        a.load(Word, R0, R10, scratch + 4).go("process_known").label("process_elsewhere");
    }
    a.call(GetCurrentPidTgid).shift_right(R0, 32).label("process_known");
}

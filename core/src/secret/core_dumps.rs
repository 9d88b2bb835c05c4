//! Whether a crash may leave the process's memory behind.
//!
//! A process that serves TLS has keys in more places than its own buffers: what the library has made of a certificate's key, and the
//! secrets of every connection. So by default it leaves no core at all, as OpenSSH's agent does.
//!
//! Not by PR_SET_DUMPABLE: that gives /proc/PID to root, and with it everything by which operators look at a process of their own user
//! (descriptors, smaps, perf).

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The file of core(5) that says which mappings a core holds.
const FILTER: &str = "/proc/self/coredump_filter";

/// From now on a crash of this process, or of a child, leaves no core.
///
/// The limit of the size is 1: less than any core, and to a program that takes cores (`|` in core_pattern), which the kernel
/// otherwise starts whatever the limit is, it means not to be started (`do_coredump` in fs/coredump.c). Where the hard limit is 0 already,
/// and on a kernel that knows other ways still, the filter makes it a core without memory.
///
/// # Errors
/// The limit cannot be lowered.
pub fn forbid() -> io::Result<()> {
    let least = getrlimit(Resource::Core).maximum.map_or(1, |maximum| maximum.min(1));
    setrlimit(Resource::Core, Rlimit { current: Some(least), maximum: Some(least) })?;
    match fs::write(FILTER, "0") {
        // A kernel without CONFIG_ELF_CORE writes no cores, and has no such file.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

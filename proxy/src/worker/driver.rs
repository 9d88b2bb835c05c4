//! Which I/O driver a worker runs on: the real ring with its final flags, a smaller one, or epoll; and why.

use std::{fmt, future::Future, io};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// `--driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// io_uring where it works, else epoll.
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// A driver that was found to work on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Driver {
    /// A ring of that many entries.
    Uring {
        /// Submission entries.
        entries: u32,
        /// Whether the kernel takes COOP_TASKRUN and SINGLE_ISSUER (Linux 6.0).
        cooperative: bool,
        /// Why the preferred ring was not to be had.
        fallback: Option<String>,
    },
    /// Readiness instead of completions.
    Epoll {
        /// Why not io_uring; `None` where it was asked for.
        fallback: Option<String>,
    },
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fallback = match self {
            Self::Uring { entries, cooperative, fallback } => {
                let flags = if *cooperative { "COOP_TASKRUN|SINGLE_ISSUER" } else { "no flags" };
                write!(f, "io_uring ({entries} entries, {flags})")?;
                fallback
            }
            Self::Epoll { fallback } => {
                f.write_str("epoll")?;
                fallback
            }
        };
        fallback.as_ref().map_or(Ok(()), |reason| write!(f, "; {reason}"))
    }
}

/// io_uring was demanded and is not to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "io_uring is not available: {reason}. Likely causes: a container runtime's seccomp profile, \
     sysctl kernel.io_uring_disabled, a memlock limit (ulimit -l) that is too low. Use --driver auto or --driver epoll"
)]
pub(crate) struct NoUring {
    reason: String,
}

/// Preferred first. Fewer entries need less locked memory (a memlock limit of 64 KiB refuses 1,024 and takes 256);
/// kernels before 6.0 do not know the flags. Measured on Linux 6.18: with the flags 19 to 23 us of CPU per proxied request,
/// without them 27 to 30. SINGLE_ISSUER|DEFER_TASKRUN stalled under load and is not used.
const LADDER: [(u32, bool); 4] = [(1024, true), (256, true), (1024, false), (256, false)];

fn ring(cooperative: bool) -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    if cooperative {
        builder.setup_coop_taskrun().setup_single_issuer();
    }
    builder
}

fn describe(error: &io::Error, entries: u32) -> String {
    let cause = match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::NOMEM.raw_os_error() => {
            "the memlock limit is too low for it (ulimit -l)"
        }
        Some(code) if code == rustix::io::Errno::PERM.raw_os_error() => {
            "refused by seccomp or sysctl kernel.io_uring_disabled"
        }
        Some(code) if code == rustix::io::Errno::NOSYS.raw_os_error() => "this kernel has no io_uring",
        _ => "refused by the kernel",
    };
    format!("a ring of {entries} entries: {cause} ({error})")
}

/// Builds the real ring, with its final flags, on the calling thread and drops it again.
pub(crate) fn probe(choice: Choice) -> Result<Driver, NoUring> {
    if choice == Choice::Epoll {
        return Ok(Driver::Epoll { fallback: None });
    }
    let mut fallback = None;
    for (entries, cooperative) in LADDER {
        let built =
            RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring(cooperative)).with_entries(entries).build();
        match built {
            Ok(_) => return Ok(Driver::Uring { entries, cooperative, fallback }),
            Err(error) => fallback = fallback.or_else(|| Some(describe(&error, entries))),
        }
    }
    let reason = fallback.unwrap_or_default();
    match choice {
        Choice::Uring => Err(NoUring { reason }),
        _ => Ok(Driver::Epoll { fallback: Some(format!("io_uring: {reason}")) }),
    }
}

impl Driver {
    /// Runs a future to its end on the calling thread, on this driver.
    pub(crate) fn run<F: Future>(&self, make: impl FnOnce() -> F) -> io::Result<F::Output> {
        match self {
            Self::Uring { entries, cooperative, .. } => RuntimeBuilder::<IoUringDriver>::new()
                .uring_builder(ring(*cooperative))
                .with_entries(*entries)
                .enable_timer()
                .build()
                .map(|mut runtime| runtime.block_on(async { make().await })),
            Self::Epoll { .. } => RuntimeBuilder::<LegacyDriver>::new()
                .enable_timer()
                .build()
                .map(|mut runtime| runtime.block_on(async { make().await })),
        }
    }
}

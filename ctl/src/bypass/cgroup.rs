//! Which cgroup is meant.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, fstatfs, open as open_file};

/// `CGROUP2_SUPER_MAGIC` (include/uapi/linux/magic.h).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Not a cgroup that programs can be attached to.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It does not exist, or cannot be opened.
    #[error("cgroup {}: {source}", path.display())]
    Unusable {
        /// What was given.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// It is something else.
    #[error("cgroup {}: not a directory of the cgroup2 file system", path.display())]
    NotCgroup2 {
        /// What was given.
        path: PathBuf,
    },
    /// Nothing was given, and there is no default.
    #[error("no cgroup2 file system is mounted")]
    NotMounted,
}

/// Opens a cgroup, by default the root of the hierarchy as it is mounted here.
pub(super) fn open(path: Option<&Path>) -> Result<(PathBuf, OwnedFd), CgroupError> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => mounted_at().ok_or(CgroupError::NotMounted)?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let unusable = |errno: rustix::io::Errno| CgroupError::Unusable { path: path.clone(), source: errno.into() };
    let directory = open_file(&path, flags, Mode::empty()).map_err(unusable)?;
    if fstatfs(&directory).map_err(unusable)?.f_type as u64 != CGROUP2_SUPER_MAGIC {
        return Err(CgroupError::NotCgroup2 { path });
    }
    Ok((path, directory))
}

/// The mount point in field 5 of /proc/self/mountinfo (proc_pid_mountinfo(5)); spaces are `\040` there, which no
/// cgroup mount has.
fn mounted_at() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

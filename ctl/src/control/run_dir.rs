//! The run directory: sockets, lock, and the little that must survive a restart of control.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        net::UnixListener as StdUnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Name of the API's socket inside the run directory.
pub const API_SOCKET_NAME: &str = "control.sock";

/// A run directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A system call failed.
    #[error("run directory {path}: {action}: {source}", path = path.display())]
    Io {
        /// Of which path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Another control process serves it.
    #[error(
        "another control process{pid} already serves {path}: stop it first, or give this one another --run-dir",
        path = path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// ` (pid 123)`, or empty.
        pid: String,
    },
    /// A unix socket address has room for 107 bytes.
    #[error("run directory {path}: the path is too long for a unix socket (107 bytes with the socket's name)", path = path.display())]
    TooLong {
        /// The directory.
        path: PathBuf,
    },
}

/// A run directory that this process alone serves, as long as the value lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Holds the lock: the kernel drops it when the process ends, however it ends.
    _lock: File,
}

impl RunDir {
    /// Creates the directory (mode 0700) where it is missing, and takes its lock.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let failed = |action| move |source| RunDirError::Io { path: path.to_owned(), action, source };
        if path.as_os_str().len() + 1 + API_SOCKET_NAME.len() > 107 {
            return Err(RunDirError::TooLong { path: path.to_owned() });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("cannot be created"))?;
        let lock_path = path.join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(failed("cannot open the lock file"))?;
        if let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(failed("cannot be locked")(errno.into()));
            }
            let mut pid = String::new();
            // The owner's pid is a courtesy: without it the message is still true.
            let _ = lock.read_to_string(&mut pid);
            let pid = pid.trim().parse::<u32>().map_or_else(|_| String::new(), |pid| format!(" (pid {pid})"));
            return Err(RunDirError::Locked { path: path.to_owned(), pid });
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed("cannot write the lock file"))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces a file as a whole: a reader, or a restart after a crash, sees the old or the new content. Not synced to
    /// the disk: the run directory outlives the process, not the machine. Nobody else can read it, whatever the
    /// directory allows: what was applied may hold Secrets.
    pub fn store(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.tmp"));
        // One that a crash has left has the mode that it was made with.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?.write_all(content)?;
        fs::rename(&temporary, self.path.join(name))
    }

    /// A file's content, `None` where it does not exist.
    pub fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the socket that a dead predecessor has left. Only with the lock in hand is it known to be dead.
    fn clear(&self, name: &str) -> Result<PathBuf, RunDirError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RunDirError::Io { path, action: "cannot remove the socket of an earlier control process", source })
            }
            _ => Ok(path),
        }
    }

    /// The API's listening socket, non-blocking.
    pub fn bind_api(&self) -> Result<StdUnixListener, RunDirError> {
        let path = self.clear(API_SOCKET_NAME)?;
        let failed = |action| {
            let path = path.clone();
            move |source| RunDirError::Io { path, action, source }
        };
        let listener = StdUnixListener::bind(&path).map_err(failed("cannot be bound"))?;
        listener.set_nonblocking(true).map_err(failed("cannot be made non-blocking"))?;
        Ok(listener)
    }

    /// The link's listening `SOCK_SEQPACKET` socket.
    pub fn bind_link(&self) -> Result<std::os::fd::OwnedFd, RunDirError> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
        let path = self.clear(meshring_core::link::SOCKET_NAME)?;
        let bound = || -> rustix::io::Result<_> {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            listen(&socket, 128)?;
            Ok(socket)
        };
        bound().map_err(|errno| RunDirError::Io { path: path.clone(), action: "cannot be bound", source: errno.into() })
    }

    /// Removes the sockets at a clean end, so that a command line says at once that control is not running.
    pub fn remove_sockets(&self) {
        for name in [API_SOCKET_NAME, meshring_core::link::SOCKET_NAME] {
            // A leftover is replaced at the next start.
            let _ = fs::remove_file(self.path.join(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_stored_is_for_control_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let run_dir = RunDir::open(parent.path()).unwrap();
        fs::write(parent.path().join("x.tmp"), "left by a crash").unwrap();
        for content in ["first", "second"] {
            run_dir.store("x", content.as_bytes()).unwrap();
            assert_eq!(run_dir.load("x").unwrap().as_deref(), Some(content.as_bytes()));
            let mode = fs::metadata(parent.path().join("x")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn the_directory_is_private_and_served_by_one_process_only() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/run");
        let first = RunDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let second = RunDir::open(&path).unwrap_err().to_string();
        assert!(second.contains(&format!("(pid {})", std::process::id())), "{second}");
        drop(first);
        RunDir::open(&path).unwrap();
    }

    #[test]
    fn stale_sockets_are_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = RunDir::open(parent.path()).unwrap();
        for _ in 0..2 {
            drop(run_dir.bind_api().unwrap());
            drop(run_dir.bind_link().unwrap());
        }
        run_dir.remove_sockets();
        assert!(!run_dir.join(API_SOCKET_NAME).exists());
    }
}

//! The run directory: sockets, lock, and the little that must survive a restart of control.
//!
//! Anybody may pass through it (mode 0711) to the sockets that judge their peers by what the kernel says about them: the link and the
//! Workload API. Nobody else can list it, and everything else in it has a mode that keeps others out.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener as StdUnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

/// Name of the API's socket inside the run directory.
pub const API_SOCKET_NAME: &str = "control.sock";

/// Of the directory, where we create it: one that is there already is its owner's business.
const DIRECTORY_MODE: u32 = 0o711;
/// The API is for the owner and for root.
const API_MODE: u32 = 0o600;
/// Proxies of any user: who they are is what SO_PEERCRED, or a join token, says ([`super::admission`]).
const LINK_MODE: u32 = 0o666;
/// How the names of files begin and end that are written, and not yet in their places.
const TEMPORARY: (&str, &str) = (".meshring-", ".tmp");
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

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

/// A file that is written, and not yet in its place.
#[derive(Debug)]
#[must_use = "it is not in its place"]
pub struct Pending {
    temporary: PathBuf,
    path: PathBuf,
    is_replaced: bool,
}

impl Pending {
    /// Where it is to be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it there.
    pub fn replace(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.is_replaced = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_replaced {
            // What was refused may hold Secrets. What is left here, the next process takes away.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A run directory that this process alone serves, as long as the value lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Files that were written: each has a temporary name of its own, since one may wait for its place while the next is written.
    written: AtomicU64,
    /// Holds the lock: the kernel drops it when the process ends, however it ends.
    _lock: File,
}

impl RunDir {
    /// Creates the directory (mode 0711) where it is missing, and takes its lock.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let failed = |action| move |source| RunDirError::Io { path: path.to_owned(), action, source };
        if path.as_os_str().len() + 1 + API_SOCKET_NAME.len() > 107 {
            return Err(RunDirError::TooLong { path: path.to_owned() });
        }
        create(path).map_err(failed("cannot be created"))?;
        let lock_path = path.join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("cannot open the lock file"))?;
        // Whoever can open it can lock it, and keep us out. It may be one of an earlier release.
        lock.set_permissions(Permissions::from_mode(0o600)).map_err(failed("cannot close the lock file to others"))?;
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
        let run_dir = Self { path: path.to_owned(), written: AtomicU64::new(0), _lock: lock };
        run_dir
            .clear_temporary()
            .map_err(failed("cannot remove what an earlier control process has left half written"))?;
        Ok(run_dir)
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
        self.write(name, content)?.replace()
    }

    /// The first half of [`store`](Self::store): all that fails where there is no room and no right.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<Pending> {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path.join(format!("{}{number}-{name}{}", TEMPORARY.0, TEMPORARY.1));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let pending = Pending { temporary, path: self.path.join(name), is_replaced: false };
        file.write_all(content)?;
        Ok(pending)
    }

    /// Removes what a crash has left between the two halves. Only with the lock in hand is it known to be nobody's.
    fn clear_temporary(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if name.starts_with(TEMPORARY.0.as_bytes()) && name.ends_with(TEMPORARY.1.as_bytes()) {
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
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
        let listener = StdUnixListener::from(self.bind(API_SOCKET_NAME, SocketType::STREAM, API_MODE)?);
        let path = || self.join(API_SOCKET_NAME);
        let failed = |source| RunDirError::Io { path: path(), action: "cannot be made non-blocking", source };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// The link's listening `SOCK_SEQPACKET` socket.
    pub fn bind_link(&self) -> Result<OwnedFd, RunDirError> {
        self.bind(meshring_core::link::SOCKET_NAME, SocketType::SEQPACKET, LINK_MODE)
    }

    fn bind(&self, name: &str, kind: SocketType, mode: u32) -> Result<OwnedFd, RunDirError> {
        let path = self.clear(name)?;
        let bound = || -> rustix::io::Result<_> {
            let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
            // The file gets the socket's mode (unix_bind_bsd in net/unix/af_unix.c), so that it is never open to more than it shall
            // be; less what the umask takes away, which comes back behind it.
            fchmod(&socket, Mode::from_raw_mode(mode))?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let failed = |action| {
            let path = path.clone();
            move |source| RunDirError::Io { path, action, source }
        };
        let socket = bound().map_err(|errno| failed("cannot be bound")(errno.into()))?;
        // By name, in a directory that only we can write to.
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed("cannot be given its mode"))?;
        Ok(socket)
    }

    /// Removes the sockets at a clean end, so that a command line says at once that control is not running.
    pub fn remove_sockets(&self) {
        for name in [API_SOCKET_NAME, meshring_core::link::SOCKET_NAME] {
            // A leftover is replaced at the next start.
            let _ = fs::remove_file(self.path.join(name));
        }
    }
}

/// A directory of [`DIRECTORY_MODE`] whatever the umask, where there is none.
fn create(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIRECTORY_MODE);
    if let Some(parent) = path.parent() {
        builder.create(parent)?;
    }
    match builder.recursive(false).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)),
        // Somebody was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_for_control_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(parent.path().join(".meshring-7-x.tmp"), "left by a crash").unwrap();
        fs::write(parent.path().join("y.tmp"), "somebody else's").unwrap();
        let run_dir = RunDir::open(parent.path()).unwrap();
        let others = || {
            let names = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name != "lock" && name != "x").collect::<Vec<_>>()
        };
        assert_eq!(others(), ["y.tmp"]);
        for content in ["first", "second"] {
            // Two may wait for their place at a time.
            let (older, newer) =
                (run_dir.write("x", b"older").unwrap(), run_dir.write("x", content.as_bytes()).unwrap());
            older.replace().unwrap();
            newer.replace().unwrap();
            assert_eq!(run_dir.load("x").unwrap().as_deref(), Some(content.as_bytes()));
            drop(run_dir.write("x", b"refused").unwrap());
            assert_eq!(others(), ["y.tmp"]);
            let mode = fs::metadata(parent.path().join("x")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn others_pass_through_the_directory_to_the_link_only() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/run");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let run_dir = RunDir::open(&path).unwrap();
        let (_api, _link) = (run_dir.bind_api().unwrap(), run_dir.bind_link().unwrap());
        assert_eq!(mode(&path), 0o711);
        let modes = ["lock", API_SOCKET_NAME, meshring_core::link::SOCKET_NAME].map(|name| mode(&path.join(name)));
        assert_eq!(modes, [0o600, 0o600, 0o666]);
        drop(run_dir);

        // What an operator has made stays as it is; what an earlier release has left open does not.
        fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        fs::set_permissions(path.join("lock"), Permissions::from_mode(0o644)).unwrap();
        let _run_dir = RunDir::open(&path).unwrap();
        assert_eq!((mode(&path), mode(&path.join("lock"))), (0o750, 0o600));
    }

    #[test]
    fn the_directory_is_served_by_one_process_only() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/run");
        let first = RunDir::open(&path).unwrap();
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

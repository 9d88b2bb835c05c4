//! Watching files by what `stat` says, on a short period: one mechanism that sees edits, renames, deletions, symlink
//! swaps (Git checkouts, Kubernetes ConfigMaps), network and overlay file systems alike, where inotify misses some.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::source::DIRECTORIES_MAX;

/// Pause between two looks, in milliseconds.
const PERIOD_MS: u64 = 200;
/// A set of files must be still for this long before it is read, in milliseconds: a checkout writes file by file.
const QUIET_MS: u64 = 50;
/// A set that never comes to rest is read after this time all the same, in milliseconds.
const UNREST_MS_MAX: u64 = 2_000;
/// A file younger than this, in milliseconds, may change again without a visible difference: file systems stamp in
/// ticks of up to 10 ms. Such a set is read once more.
const YOUNG_MS: u64 = 100;
/// Of the time, at most one part in this many goes into looking: large trees are looked at less often.
const EFFORT_DIVISOR: u32 = 20;
const DEPTH_MAX: usize = 32;

/// What `stat` says about a set of files. Equal fingerprints: nothing has changed, unless the set is `young`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    hash: u64,
    /// Newest change of any file, in nanoseconds since the Unix epoch.
    newest_ns: i128,
}

impl Fingerprint {
    /// Looks at files and directories, the latter recursively and through symlinks.
    #[must_use]
    pub fn of(paths: &[PathBuf]) -> Self {
        let mut look = Look { hasher: xxhash_rust::xxh3::Xxh3::new(), newest_ns: 0, directories: 0 };
        for path in paths {
            look.visit(path, DEPTH_MAX);
        }
        Self { hash: look.hasher.digest(), newest_ns: look.newest_ns }
    }

    fn is_young(&self) -> bool {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
        // Either way: after a clock that was years ahead is right again, its files are from the future, and no reason to read
        // everything at every look until then.
        (now - self.newest_ns).abs() < i128::from(YOUNG_MS) * 1_000_000
    }
}

struct Look {
    hasher: xxhash_rust::xxh3::Xxh3,
    newest_ns: i128,
    directories: usize,
}

impl Look {
    fn visit(&mut self, path: &Path, depth: usize) {
        use std::os::unix::ffi::OsStrExt;
        self.hasher.update(path.as_os_str().as_bytes());
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.failed(&error),
        };
        let words = [metadata.dev(), metadata.ino(), metadata.size(), metadata.mode().into()];
        words.iter().for_each(|word| self.hasher.update(&word.to_le_bytes()));
        if metadata.is_dir() {
            // A directory's times say nothing that its entries do not, and an unrelated file changes them.
            self.directories += 1;
            if depth > 0 && self.directories <= DIRECTORIES_MAX {
                self.directory(path, depth - 1);
            }
            return;
        }
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        let modified_ns = ns(metadata.mtime(), metadata.mtime_nsec());
        // No user sets this one: a file from the future is young by its mtime for years.
        let changed_ns = ns(metadata.ctime(), metadata.ctime_nsec());
        self.hasher.update(&modified_ns.to_le_bytes());
        self.hasher.update(&changed_ns.to_le_bytes());
        self.newest_ns = self.newest_ns.max(changed_ns);
    }

    fn directory(&mut self, path: &Path, depth: usize) {
        let mut names: Vec<_> = match fs::read_dir(path) {
            Ok(entries) => entries.flatten().map(|entry| entry.file_name()).collect(),
            Err(error) => return self.failed(&error),
        };
        names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        names.sort();
        names.iter().for_each(|name| self.visit(&path.join(name), depth));
    }

    fn failed(&mut self, error: &io::Error) {
        self.hasher.update(&error.raw_os_error().unwrap_or(-1).to_le_bytes());
    }
}

/// Calls `changed` after each change of the files, for as long as the process lives. `seen` is what was read at first.
pub fn serve(paths: &[PathBuf], mut seen: Fingerprint, mut changed: impl FnMut()) {
    let mut read_young = seen.is_young();
    let mut pause = Duration::from_millis(PERIOD_MS);
    loop {
        std::thread::sleep(pause);
        let begin = Instant::now();
        let mut now = Fingerprint::of(paths);
        pause = Duration::from_millis(PERIOD_MS).max(begin.elapsed() * EFFORT_DIVISOR);
        if now == seen && !read_young {
            continue;
        }
        let give_up = Instant::now() + Duration::from_millis(UNREST_MS_MAX);
        loop {
            let before = now;
            std::thread::sleep(Duration::from_millis(QUIET_MS));
            now = Fingerprint::of(paths);
            if now == before || Instant::now() >= give_up {
                break;
            }
        }
        // Taken before the files are read: what changes during the reading differs from it at the next look.
        seen = now;
        read_young = now.is_young();
        changed();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_from_the_future_are_not_young() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "a: 1").unwrap();
        let mut seen = Fingerprint::of(&[dir.path().to_owned()]);
        let now_ns = seen.newest_ns;
        assert!(seen.is_young());
        for years in [-10, 10] {
            seen.newest_ns = now_ns + years * 365 * 24 * 3_600 * 1_000_000_000;
            assert!(!seen.is_young(), "{years} years from now");
        }
    }

    #[test]
    fn every_way_to_change_a_file_set_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let paths = [dir.path().to_owned()];
        fs::create_dir(at(".v1")).unwrap();
        fs::create_dir(at(".v2")).unwrap();
        fs::write(at(".v1/a.yaml"), "a: 1").unwrap();
        fs::write(at(".v2/a.yaml"), "a: 2").unwrap();
        symlink(".v1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        fs::create_dir(at("sub")).unwrap();
        let mut seen = Fingerprint::of(&paths);
        let mut step = |what: &str, change: &dyn Fn()| {
            change();
            let now = Fingerprint::of(&paths);
            assert_ne!(seen, now, "not seen: {what}");
            assert_eq!(now, Fingerprint::of(&paths), "not stable: {what}");
            seen = now;
        };
        step("symlink swap of a hidden directory", &|| {
            symlink(".v2", at("..new")).unwrap();
            fs::rename(at("..new"), at("..data")).unwrap();
        });
        step("new file in a subdirectory", &|| fs::write(at("sub/b.yaml"), "b: 1").unwrap());
        step("other length", &|| fs::write(at("sub/b.yaml"), "b: 10").unwrap());
        step("rename over it", &|| {
            fs::write(at("sub/.tmp"), "b: 20").unwrap();
            fs::rename(at("sub/.tmp"), at("sub/b.yaml")).unwrap();
        });
        step("rename to another name", &|| fs::rename(at("sub/b.yaml"), at("sub/c.yaml")).unwrap());
        step("removal", &|| fs::remove_file(at("sub/c.yaml")).unwrap());
        step("dangling symlink", &|| fs::remove_file(at("..data")).unwrap());
    }
}

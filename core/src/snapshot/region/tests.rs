//! What the seals promise: nobody changes a snapshot, nobody but its creator writes a page.

use rustix::io::{Errno, pwrite};

use super::*;

fn content(region: &Region) -> Vec<u8> {
    // SAFETY: called on regions that were opened with SEALS_IMMUTABLE only.
    unsafe { region.bytes() }.to_vec()
}

/// The same memory through another descriptor, opened for writing, as a malicious peer would try it.
fn reopened(fd: &OwnedFd) -> File {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    File::options().read(true).write(true).open(path).expect("the right to open is not the right to write")
}

#[test]
fn not_even_its_writer_can_change_or_cut_a_sealed_memfd() {
    let fd = sealed("test", &[b"abc", b"def"]).expect("a memfd");
    let region = Region::open(&fd, SEALS_IMMUTABLE, 1, 100).expect("sealed");
    assert_eq!(content(&region), b"abcdef");
    let other = reopened(&fd);
    for fd in [fd.as_fd(), other.as_fd()] {
        assert_eq!(pwrite(fd, b"x", 0), Err(Errno::PERM));
        assert_eq!(pwrite(fd, b"x", 6), Err(Errno::PERM), "nor extend it");
        assert_eq!(rustix::fs::ftruncate(fd, 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(fd, 4096), Err(Errno::PERM));
        let writable = Region::map(fd, 6, ProtFlags::READ | ProtFlags::WRITE);
        assert_eq!(writable.err(), Some(Errno::PERM), "nor map it for writing");
        assert_eq!(fcntl_add_seals(fd, SealFlags::WRITE), Err(Errno::PERM), "nor change the seals");
    }
    assert_eq!(content(&region), b"abcdef");
}

#[test]
fn a_mapping_outlives_its_descriptor() {
    let fd = sealed("test", &[b"abc"]).expect("a memfd");
    let region = Region::open(&fd, SEALS_IMMUTABLE, 1, 100).expect("sealed");
    drop(fd);
    assert_eq!(content(&region), b"abc");
    assert_eq!((region.len(), region.is_empty()), (3, false));
}

#[test]
fn memory_without_all_of_its_seals_is_refused() {
    let seals = [
        SealFlags::empty(),
        SealFlags::WRITE | SealFlags::SEAL,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SEAL,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK,
        SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        SEALS_SINGLE_WRITER,
    ];
    for present in seals {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
        pwrite(&fd, b"abc", 0).expect("written");
        fcntl_add_seals(&fd, present).expect("sealed");
        let refused = Region::open(&fd, SEALS_IMMUTABLE, 1, 100).expect_err("not all of the seals");
        assert!(matches!(refused, BadRegion::NotSealed), "{present:?}: {refused}");
    }
}

#[test]
fn a_descriptor_that_is_no_memfd_is_refused() {
    let file = File::open("/proc/self/exe").expect("our own program");
    for refused in [
        Region::open(&file, SEALS_IMMUTABLE, 1, u64::MAX).expect_err("a file"),
        Region::open(std::io::pipe().expect("a pipe").0, SEALS_IMMUTABLE, 1, u64::MAX).expect_err("a pipe"),
    ] {
        assert!(refused.to_string().starts_with("fcntl(F_GET_SEALS): "), "{refused}");
    }
}

#[test]
fn a_size_out_of_bounds_is_refused() {
    let fd = sealed("test", &[b"abcdef"]).expect("a memfd");
    for (min, max, accepted) in [(6, 6, true), (1, 6, true), (7, 9, false), (1, 5, false)] {
        assert_eq!(Region::open(&fd, SEALS_IMMUTABLE, min, max).is_ok(), accepted, "{min} to {max}");
    }
    let empty = sealed("test", &[]).expect("a memfd");
    let refused = Region::open(&empty, SEALS_IMMUTABLE, 64, 100).expect_err("empty");
    assert_eq!(refused.to_string(), "0 bytes, expected 64 to 100");
}

#[test]
fn a_page_has_one_writable_mapping_for_ever() {
    let (fd, mine) = Region::create("test", 4096).expect("a page");
    let theirs = Region::open(&fd, SEALS_SINGLE_WRITER, 4096, 4096).expect("sealed");
    assert_eq!(theirs.len(), mine.len());
    let other = reopened(&fd);
    for fd in [fd.as_fd(), other.as_fd()] {
        let writable = Region::map(fd, 4096, ProtFlags::READ | ProtFlags::WRITE);
        assert_eq!(writable.err(), Some(Errno::PERM));
        assert_eq!(pwrite(fd, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(fd, 1), Err(Errno::PERM));
        assert!(Region::map(fd, 4096, ProtFlags::READ).is_ok());
    }
}

//! The memory that our own code and constants take.

#![allow(unsafe_code, reason = "dl_iterate_phdr(3) and madvise(2), for which there is no safe crate")]

use std::{ops::Range, ptr, slice};

use rustix::{
    mm::{Advice, madvise},
    param::page_size,
};

/// Gives back the pages of our own code and constants that were touched until now: of those that a start touches, most are never needed
/// again (relocations, the command line, probes), and the kernel maps their neighbours with them. What is needed again is mapped
/// again, from the page cache, in a microsecond.
pub(super) fn forget_start() {
    for range in read_only_segments() {
        // SAFETY: the range is whole pages of a segment that the program file backs and that nothing can write to, neither we nor
        // the dynamic linker (it does to segments that may be written, RELRO among them): a page that is gone is read from the file
        // again, with the same bytes. The file is the one that runs, also after it was replaced.
        let _ = unsafe { madvise(ptr::without_provenance_mut(range.start), range.len(), Advice::LinuxDontNeed) };
    }
}

/// Addresses of the whole pages of the program's own segments that may be read or executed, and not written.
fn read_only_segments() -> Vec<Range<usize>> {
    unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _: usize, data: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the loader passes a valid description, whose headers stay mapped, and `data` is the vector below, which outlives
        // the iteration and which nobody else touches meanwhile.
        let (base, headers, found) = unsafe {
            let info = &*info;
            let headers = slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
            (info.dlpi_addr as usize, headers, &mut *data.cast::<Vec<Range<usize>>>())
        };
        let page = page_size();
        for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
            let begin = base + header.p_vaddr as usize;
            // Inwards: a page at the edge might be a neighbour's, too.
            let (begin, end) = (begin.next_multiple_of(page), (begin + header.p_memsz as usize) / page * page);
            if begin < end {
                found.push(begin..end);
            }
        }
        // The first object is the program itself: no more of them.
        1
    }
    let mut found = Vec::new();
    // SAFETY: the callback is called for the time of this call only, with the pointer to `found`.
    unsafe {
        libc::dl_iterate_phdr(Some(first), (&raw mut found).cast());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of the range is in memory, in KiB.
    fn resident_kib(range: &Range<usize>) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines();
        let mapping = |line: &str| {
            let (begin, end) = line.split(' ').next()?.split_once('-')?;
            Some(usize::from_str_radix(begin, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        };
        lines.find(|line| mapping(line).is_some_and(|mapping| mapping.contains(&range.start))).unwrap();
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_touched_is_given_back_and_can_be_used_again() {
        let segments = read_only_segments();
        assert!(segments.iter().any(|range| range.contains(&(forget_start as *const () as usize))), "{segments:?}");
        assert!(segments.iter().any(|range| range.contains(&(b"a constant".as_ptr() as usize))), "{segments:?}");
        let largest = segments.iter().max_by_key(|range| range.len()).unwrap();
        let sum = || {
            // SAFETY: the range is mapped and can be read; nothing writes to it.
            let bytes = unsafe { slice::from_raw_parts(ptr::without_provenance::<u8>(largest.start), largest.len()) };
            bytes.iter().step_by(page_size()).map(|byte| u64::from(*byte)).sum::<u64>()
        };
        let before = sum();
        let touched = resident_kib(largest);
        assert!(touched >= largest.len() / 1024, "{touched} KiB of {}", largest.len());
        forget_start();
        // Other tests go on meanwhile and take theirs.
        let left = resident_kib(largest);
        assert!(left < touched / 2, "{left} KiB of {touched}");
        assert_eq!(sum(), before);
    }
}

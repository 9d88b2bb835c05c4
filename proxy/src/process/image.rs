//! The memory that code and constants take, our own and the libraries'.

#![allow(unsafe_code, reason = "dl_iterate_phdr(3) and madvise(2), for which there is no safe crate")]

use std::{ops::Range, ptr, slice};

use rustix::{
    mm::{Advice, madvise},
    param::page_size,
};

/// Gives back the pages of code and constants that were touched until now: of those that a start touches, most are never needed
/// again (relocations, the command line, probes), and the kernel maps their neighbours with them. What is needed again is mapped
/// again, from the page cache, in a microsecond.
pub(super) fn forget_start() {
    for range in read_only_segments() {
        // SAFETY: the range is whole pages of a segment that a file backs, the program's or a library's, and that nothing can write to,
        // neither we nor the dynamic linker (it does to segments that may be written, RELRO among them): a page that is gone is read
        // from the file again, with the same bytes. The file is the one that runs, also after it was replaced. What the kernel maps without
        // a file (vdso) it maps again likewise.
        let _ = unsafe { madvise(ptr::without_provenance_mut(range.start), range.len(), Advice::LinuxDontNeed) };
    }
}

/// Addresses of the whole pages of the program's and its libraries' segments that may be read or executed, and not written.
fn read_only_segments() -> Vec<Range<usize>> {
    unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, data: *mut libc::c_void) -> libc::c_int {
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
        // Go on with the next one.
        0
    }
    let mut found = Vec::new();
    // SAFETY: the callback is called for the time of this call only, with the pointer to `found`.
    unsafe {
        libc::dl_iterate_phdr(Some(note), (&raw mut found).cast());
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{fs::File, hint::black_box, os::unix::fs::FileExt as _};

    use super::*;

    /// What no other test touches, and not all zeros.
    static CONSTANT: [u8; BYTES] = [7; BYTES];
    const BYTES: usize = 2 * AROUND + (1 << 20);
    /// The kernel maps what is around of what is touched, too, within a page table: so near to the edges it may be others'.
    const AROUND: usize = 2 << 20;

    /// How many pages of the range are mapped, and how many there are (`pagemap`, bit 63).
    fn mapped(range: &Range<usize>) -> (usize, usize) {
        let pages = range.start / page_size()..range.end / page_size();
        let mut entries = vec![0; pages.len() * 8];
        File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, pages.start as u64 * 8).unwrap();
        // The highest bit of a little-endian number.
        (entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count(), pages.len())
    }

    #[test]
    fn what_was_touched_is_given_back_and_can_be_used_again() {
        let segments = read_only_segments();
        assert!(segments.iter().any(|range| range.contains(&(forget_start as *const () as usize))), "{segments:?}");
        let begin = CONSTANT.as_ptr() as usize;
        let end = begin + CONSTANT.len();
        assert!(segments.iter().any(|range| range.contains(&begin) && range.contains(&(end - 1))), "{segments:?}");
        let inner = (begin + AROUND).next_multiple_of(page_size())..(end - AROUND) / page_size() * page_size();
        let sum = || black_box(&CONSTANT).iter().map(|byte| usize::from(*byte)).sum::<usize>();
        assert_eq!(sum(), 7 * CONSTANT.len());
        let (touched, pages) = mapped(&inner);
        assert_eq!(touched, pages);
        forget_start();
        assert_eq!(mapped(&inner), (0, pages));
        assert_eq!(sum(), 7 * CONSTANT.len());
    }
}

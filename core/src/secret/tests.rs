//! [`SecretBytes`], as the kernel and as its users see it.

use std::{fs, io::Read};

use super::*;

/// The flags of the mapping that holds an address (`VmFlags` in /proc/PID/smaps, proc_pid_smaps(5)).
fn flags(address: usize) -> Option<Vec<String>> {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut here = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((Ok(begin), Ok(end))) =
            range.map(|(begin, end)| (usize::from_str_radix(begin, 16), usize::from_str_radix(end, 16)))
        {
            here = (begin..end).contains(&address);
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| here) {
            return Some(flags.split_ascii_whitespace().map(str::to_owned).collect());
        }
    }
    None
}

#[test]
fn its_pages_are_left_out_of_core_dumps() {
    let is_left_out = |bytes: &[u8]| flags(bytes.as_ptr() as usize).unwrap().contains(&"dd".to_owned());
    assert!(!is_left_out(&vec![1; 100_000]), "what lies on the heap is dumped: this test sees the difference");
    assert!(is_left_out(&SecretBytes::from(&b"key"[..])));
    let mut grown = SecretBytes::from(&[1; 5000][..]);
    (0..100).for_each(|_| grown.extend_from_slice(&[2; 1000]));
    assert!(is_left_out(&grown));
    assert!(is_left_out(&grown[grown.len() - 1..]), "its last page");
    assert!(is_left_out(&grown.clone()));
    assert!(is_left_out(&SecretBytes::read_from(&[3_u8; 70_000][..], 100_000).unwrap()));
}

#[test]
fn it_is_a_vector_that_tells_nothing() {
    let mut bytes = SecretBytes::default();
    assert!(bytes.is_empty());
    bytes.extend_from_slice(b"");
    let mut expected = Vec::new();
    for n in 0..6000_usize {
        let part = vec![n as u8; n % 5];
        bytes.extend_from_slice(&part);
        bytes.push(7);
        expected.extend_from_slice(&part);
        expected.push(7);
    }
    assert_eq!(bytes.as_slice(), expected);
    assert_eq!(SecretBytes::from(expected.clone()), bytes);
    assert_eq!(bytes.clone(), bytes);
    assert_ne!(SecretBytes::zeroed(bytes.len()), bytes);
    bytes[0] = 9;
    assert_eq!((bytes[0], bytes.len()), (9, expected.len()));
    write!(SecretBytes::default(), "text").unwrap();
    assert_eq!(format!("{:?}", SecretBytes::from(&b"key"[..])), "SecretBytes(..)");
}

#[test]
fn what_is_read_is_whole_or_refused() {
    /// Bytes that come in small pieces, as from a pipe.
    struct Drops<'a>(&'a [u8]);
    impl Read for Drops<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = into.len().min(7);
            (&mut self.0).take(count as u64).read(into)
        }
    }
    let content: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
    for len in [0, 1, 4095, 4096, 4097, 20_000] {
        let read = SecretBytes::read_from(Drops(&content[..len]), len).unwrap();
        assert_eq!(read.as_slice(), &content[..len]);
        if len > 0 {
            let refused = SecretBytes::read_from(Drops(&content[..len]), len - 1).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        }
    }
}

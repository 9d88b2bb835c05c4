//! Whether the kernel's memory for TCP comes to an end.

use std::fs;

/// True from nine tenths of the second value of `net.ipv4.tcp_mem` on (tcp(7)), where the kernel begins to refuse. Where the
/// files cannot be read, there is nothing to heed.
pub(super) fn is_near() -> bool {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (used, limits) = (read("/proc/net/sockstat"), read("/proc/sys/net/ipv4/tcp_mem"));
    is_near_in(&used, &limits).unwrap_or(false)
}

/// Both count pages.
fn is_near_in(sockstat: &str, tcp_mem: &str) -> Option<bool> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let used: u64 = tcp.split_ascii_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()?;
    let pressure: u64 = tcp_mem.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(used >= pressure / 10 * 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_compared_with_the_middle_limit() {
        let sockstat =
            |mem| format!("sockets: used 9\nTCP: inuse 5 orphan 0 tw 2 alloc 7 mem {mem}\nUDP: inuse 1 mem 3\n");
        let limits = "287898\t383867\t575796\n";
        assert_eq!(is_near_in(&sockstat(100), limits), Some(false));
        assert_eq!(is_near_in(&sockstat(345_474), limits), Some(true));
        assert_eq!(is_near_in("", limits), None);
        assert_eq!(is_near_in(&sockstat(1), "1"), None);
    }
}

//! Who lets an exchange wait: what the kernel says of the sockets of this process meanwhile, and what it counts.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How often the sockets are looked at: some ten times in the least time that a kernel waits for (40 ms, `TCP_DELACK_MIN`).
const LOOK_INTERVAL: Duration = Duration::from_millis(4);

/// What the kernel has counted before, too: who has dropped what had come has shrunk the window then (`tcp_prune_queue`).
const TOTALS: [&str; 4] = ["PruneCalled", "RcvPruned", "TCPRcvQDrop", "RetransSegs"];

/// Does it, and tells how the established connections of this process have changed meanwhile, and which counters of the kernel have
/// grown. Bytes that lie unread on one side while nobody does anything: a wake-up is lost, and the fault is that side's. Bytes unsent
/// or unacknowledged on one side, and nothing unread on the other: the kernel waits, and its timer and counters say for what.
pub(crate) fn told_of(exchange: impl FnOnce()) -> String {
    let (begun, before, is_over) = (Instant::now(), counters(), AtomicBool::new(false));
    let mut text = String::new();
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let (mut seen, mut last) = (String::new(), String::new());
            while !is_over.load(Ordering::Relaxed) {
                let now = connections();
                if now != last {
                    let _ = write!(seen, "  {} ms:\n{now}", begun.elapsed().as_millis());
                    last = now;
                }
                thread::sleep(LOOK_INTERVAL);
            }
            seen
        });
        exchange();
        is_over.store(true, Ordering::Relaxed);
        let _ = writeln!(
            text,
            "an exchange took {} ms; connections with something under way:",
            begun.elapsed().as_millis()
        );
        text.push_str(&looking.join().unwrap());
    });
    let grown = counters().into_iter().filter_map(|(name, now)| {
        let more = now - before.get(&name).copied().unwrap_or(0);
        (more != 0 || TOTALS.contains(&&*name)).then(|| format!("{name} +{more} to {now}"))
    });
    let _ = writeln!(text, "  counted by the kernel: {}", grown.collect::<Vec<_>>().join(", "));
    text
}

/// A line for each established connection of this process over IPv4 that has bytes on their way or a timer (proc_net_tcp.rst), and
/// what each thread sleeps in, as far as the kernel tells.
fn connections() -> String {
    let descriptors = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let own: HashSet<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut text = String::new();
    for line in fs::read_to_string("/proc/self/net/tcp").unwrap_or_default().lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, "01", queues, timer, again, _, _, inode, _, _, rto, ato, quick, window, ..] = fields[..]
        else {
            continue;
        };
        if !own.contains(inode) {
            continue;
        }
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or(u64::MAX);
        let pair = |text: &str| text.split_once(':').map_or((u64::MAX, u64::MAX), |(a, b)| (hex(a), hex(b)));
        let (unacknowledged, unread) = pair(queues);
        // Its time left would differ at each look.
        let timer = match pair(timer).0 {
            0 => "",
            1 => ", waits to send again",
            4 => ", waits for the other side's window",
            _ => ", another timer",
        };
        if unacknowledged == 0 && unread == 0 && timer.is_empty() {
            continue;
        }
        let (from, to) = (pair(local).1, pair(remote).1);
        let _ = writeln!(
            text,
            "    {from}->{to}: {unacknowledged} bytes not acknowledged, {unread} not read{timer}, tried again {}, rto {rto}, ato {ato}, \
             quick and interactive {quick}, congestion window {window}",
            hex(again),
        );
    }
    if text.is_empty() {
        text.push_str("    none\n");
    }
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let sleeps: Vec<String> = tasks.filter_map(|task| fs::read_to_string(task.path().join("wchan")).ok()).collect();
    let _ = writeln!(text, "    threads: {}", sleeps.join(" "));
    text
}

/// What the kernel counts of TCP and TLS in this network namespace.
fn counters() -> BTreeMap<String, i64> {
    let mut counters = BTreeMap::new();
    for path in ["/proc/self/net/snmp", "/proc/self/net/netstat"] {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2).filter(|pair| pair[0].starts_with("Tcp")) {
            let named = pair[0].split_whitespace().zip(pair[1].split_whitespace()).skip(1);
            counters.extend(named.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))));
        }
    }
    let tls = fs::read_to_string("/proc/self/net/tls_stat").unwrap_or_default();
    let named = tls.lines().filter_map(|line| line.split_once(char::is_whitespace));
    counters.extend(named.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))));
    counters
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Waits until a connection is told with this.
    fn until(told: &str) {
        let begun = Instant::now();
        while !connections().contains(told) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no {told} in {}", connections());
            thread::yield_now();
        }
    }

    #[test]
    fn bytes_that_nobody_reads_are_told_and_what_the_kernel_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        let to = listener.local_addr().unwrap().port();
        let told = told_of(|| {
            client.write_all(b"hello").unwrap();
            // Also once the acknowledgement has come.
            until(&format!("    {to}->{}: 0 bytes not acknowledged, 5 not read", from.port()));
            server.read_exact(&mut [0; 5]).unwrap();
        });
        assert!(told.contains("an exchange took"), "{told}");
        assert!(told.contains("InSegs +"), "{told}");
    }
}

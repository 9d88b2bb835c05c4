//! Attackers do not keep others from the core that they share.

#![allow(unsafe_code, reason = "one system call for which there is no safe crate without a crowd of others")]

use crate::process::Process;

/// Lets everybody else on its core go before this thread, an attacker: what the normal load waits for is the proxy, not it. A nice value
/// would not do: whoever is woken up waits until the slice of the nicest is over (EEVDF), but not for one who is idle (`sched(7)`).
pub(super) fn give_way() {
    be_idle(0);
}

/// Likewise a process of one thread, whose work is the attackers' doing.
pub(super) fn give_way_of(process: &Process) {
    be_idle(process.pid().cast_signed());
}

/// 0 is the calling thread.
fn be_idle(id: i32) {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel copies what is pointed at. It needs no privilege; where a filter refuses it, others' latencies are told too high.
    let _ = unsafe { libc::sched_setscheduler(id, libc::SCHED_IDLE, &raw const param) };
}

//! Who may talk to control: whoever owns it, and root. The kernel says who a peer is (`SO_PEERCRED`); the mode
//! of the API's socket keeps others out in the first place, and this holds where somebody has widened it. To the link anybody can
//! connect, and needs a right to a workload there ([`super::admission`]).

/// A peer that is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("user id {peer} may not talk to this control process: it serves user id {own} and root; run as one of them")]
pub struct Denied {
    peer: u32,
    own: u32,
}

/// Whether a process of this user may talk to us.
pub fn check(peer: u32) -> Result<(), Denied> {
    judge(peer, rustix::process::geteuid().as_raw())
}

fn judge(peer: u32, own: u32) -> Result<(), Denied> {
    if peer == own || peer == 0 { Ok(()) } else { Err(Denied { peer, own }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_root_may_talk() {
        assert_eq!(judge(1000, 1000), Ok(()));
        assert_eq!(judge(0, 1000), Ok(()));
        let denied = judge(1001, 1000).unwrap_err().to_string();
        assert!(denied.contains("1001") && denied.contains("1000"), "{denied}");
        assert!(judge(1000, 0).is_err());
    }
}

//! TLS: who we are, whom we trust, and the handshakes that prove it. What comes after a handshake is
//! [`worker::secure`](crate::worker::secure).

pub(crate) mod handshake;
pub(crate) mod materials;
mod overflow;
mod verify;

#[cfg(test)]
pub(crate) mod tests;

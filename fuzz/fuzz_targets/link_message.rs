//! Messages of the link: no panic, and what is understood survives a round trip.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use meshring_core::link::{ToControl, ToProxy};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    round_trip::<ToControl>(data);
    round_trip::<ToProxy>(data);
});

fn round_trip<M: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<M>(data) else { return };
    let bytes = serde_json::to_vec(&message).expect("a message");
    assert_eq!(serde_json::from_slice::<M>(&bytes).expect("what we write is understood"), message);
}

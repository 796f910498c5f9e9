//! See [`dormouse_fuzz::agent`].
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: dormouse_fuzz::seeds::place("agent"),
    |bytes: &[u8]| dormouse_fuzz::agent(bytes)
);

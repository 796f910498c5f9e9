//! See [`dormouse_fuzz::records`].
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: dormouse_fuzz::seeds::place("records"),
    |bytes: &[u8]| dormouse_fuzz::records(bytes)
);

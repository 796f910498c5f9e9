//! See [`dormouse_fuzz::qmp`].
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: dormouse_fuzz::seeds::place("qmp"),
    |bytes: &[u8]| dormouse_fuzz::qmp(bytes)
);

//! See [`dormouse_fuzz::qmp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dormouse_fuzz::qmp(bytes));

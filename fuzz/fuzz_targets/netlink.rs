//! See [`dormouse_fuzz::netlink`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dormouse_fuzz::netlink(bytes));

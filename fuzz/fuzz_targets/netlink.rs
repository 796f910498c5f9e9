//! See [`dormouse_fuzz::netlink`].
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: dormouse_fuzz::seeds::place("netlink"),
    |bytes: &[u8]| dormouse_fuzz::netlink(bytes)
);

//! See [`dormouse_fuzz::image`].
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: dormouse_fuzz::seeds::place("image"),
    |bytes: &[u8]| dormouse_fuzz::image(bytes)
);

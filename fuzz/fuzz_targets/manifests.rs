//! See [`dormouse_fuzz::manifests`].
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: dormouse_fuzz::seeds::place("manifests"),
    |bytes: &[u8]| dormouse_fuzz::manifests(bytes)
);

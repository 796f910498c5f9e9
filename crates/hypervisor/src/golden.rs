//! Comparing with files in tests/golden; `UPDATE=1` writes them.

/// Compares `got` with the golden file `name`.
pub(crate) fn check(name: &str, got: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, want, "tests/golden/{name} differs; UPDATE=1 writes it");
}

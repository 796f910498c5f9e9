//! Firecracker.

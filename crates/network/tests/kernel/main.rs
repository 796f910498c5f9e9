//! The data plane against the real kernel. Needs root; makes its own namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends by panicking"
)]

mod bed;
mod cost;
mod ownership;
mod parking;
mod restart;

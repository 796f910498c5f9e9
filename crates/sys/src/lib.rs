//! The only room that may hold `unsafe`: thin safe wrappers around system calls that no well-kept
//! crate offers, each block with its proof.
//!
//! | module | wraps |
//! |---|---|
//! | [`clock`] | boot-time and wall clocks, boot id, TSC frequency |
//! | [`descriptor`] | passing descriptors over Unix sockets |
//! | [`fault`] | fault points for the chaos harness; nothing without the feature `plant` |
//! | [`guest`] | what an init process needs: modules, entropy, reboot, clock, host name |
//! | [`memory`] | `PAGEMAP_SCAN`, reading and paging out another process |
//! | [`mount`] | which mount a file was reached through |
//! | [`netns`] | network namespaces |
//! | [`page_cache`] | how much of a file is cached, and how much of it dirty |
//! | [`pidfd`] | processes by descriptor |
//! | [`random`] | random bytes of the kernel |
//! | [`socket`] | socket options and classic BPF filters |
//! | [`spawn`] | starting a process with exactly the descriptors and rights it is given |
//! | [`tap`] | tap devices |

pub mod clock;
pub mod descriptor;
pub mod fault;
pub mod guest;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod page_cache;
pub mod pidfd;
pub mod random;
pub mod socket;
pub mod spawn;
pub mod tap;

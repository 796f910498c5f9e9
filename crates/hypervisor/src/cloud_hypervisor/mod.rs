//! Cloud Hypervisor: the translation. The program is driven by HTTP over its API socket, whose listening
//! descriptor it takes as `--api-socket fd=N`; see the OpenAPI document of its repository
//! (vmm/src/api/openapi/cloud-hypervisor.yaml).
//!
//! What differs from QEMU, and how the port bears it: a snapshot is a directory of files, not a stream, so
//! a driver keeps the directory beside the state file that the port asks for; the agent's port is a vsock
//! device with a path; pausing twice is refused by the program and is success to the port.

pub mod translate;

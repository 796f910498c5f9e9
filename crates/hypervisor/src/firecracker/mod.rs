//! Firecracker: the translation. The program is driven by HTTP over its API socket; see the Swagger
//! document of its repository (src/firecracker/swagger/firecracker.yaml).
//!
//! What differs from QEMU, and how the port bears it: guest RAM is the program's own and a snapshot writes
//! what is dirty of it, so such machines do not sleep at a cost that is independent of RAM, and
//! [`crate::Abilities::sleep`] is off; a tap is taken by name, not by descriptor; the agent's port is a
//! vsock device with a path, which must not exist when state is loaded.

pub mod translate;

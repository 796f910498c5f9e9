//! The public API in Rust: what `proto/dormouse/v1` generates, and the names that travel outside
//! of messages.
//!
//! The generated code is committed, so that building needs no protoc; `cargo xtask codegen` writes
//! it and `cargo xtask codegen --check` fails when it is stale.

/// Version 1 of the API: messages, clients and servers.
pub mod v1 {
    #[allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        unused_qualifications,
        elided_lifetimes_in_paths,
        rustdoc::all,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::semicolon_if_nothing_returned,
        clippy::uninlined_format_args,
        clippy::too_many_lines,
        clippy::large_futures,
        clippy::or_fun_call,
        reason = "generated: the generators follow their own rules"
    )]
    mod generated {
        include!("generated/dormouse.v1.rs");
    }

    pub use generated::*;
}

pub mod details;

/// Keys of the metadata that go with requests and with errors.
pub mod metadata {
    /// With every error: the stable code, in capitals, such as `INSTANCE_NOT_FOUND`.
    pub const CODE: &str = "dormouse-code";
    /// With every error: the sort of failure, as `dormouse_model::Kind` names it.
    pub const KIND: &str = "dormouse-kind";
    /// With every error: what to do about it, as `dormouse_model::Retry` names it.
    pub const RETRY: &str = "dormouse-retry";
    /// With a request, at the caller's choice: 1 to 64 printable characters by which the daemon's log shall name
    /// it. With every answer, in its header and its trailers: that id, or the one that the daemon gave it.
    pub const REQUEST_ID: &str = "dormouse-request-id";
}

/// The descriptors of the API and of what it imports, for reflection: the bytes of a
/// `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("descriptor.bin");

#[cfg(test)]
mod tests {
    use prost::Message as _;

    #[test]
    fn every_service_is_described() {
        let set = prost_types::FileDescriptorSet::decode(super::FILE_DESCRIPTOR_SET).unwrap();
        let mut services: Vec<&str> = set
            .file
            .iter()
            .flat_map(|file| &file.service)
            .map(|service| service.name())
            .collect();
        services.sort_unstable();
        assert_eq!(
            services,
            [
                "ImageService",
                "InstanceService",
                "StandbyService",
                "SystemService"
            ]
        );
    }

    #[test]
    fn every_message_and_field_says_what_it_is() {
        // In source order, comments are addressed by paths of field numbers: 4 = message,
        // 2 = field (google/protobuf/descriptor.proto, SourceCodeInfo.Location).
        let set = prost_types::FileDescriptorSet::decode(super::FILE_DESCRIPTOR_SET).unwrap();
        for file in set.file.iter().filter(|file| file.package() == "dormouse.v1") {
            let Some(info) = &file.source_code_info else {
                continue;
            };
            for location in &info.location {
                if matches!(
                    location.path.as_slice(),
                    [4, _] | [4, _, 2, _] | [5, _] | [6, _, 2, _]
                ) {
                    assert!(
                        !location.leading_comments().is_empty(),
                        "{} {:?}",
                        file.name(),
                        location.path
                    );
                }
            }
        }
    }
}

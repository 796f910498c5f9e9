//! The detail of an error as it travels: one [`v1::ErrorDetail`](crate::v1::ErrorDetail) in the
//! `google.rpc.Status` that gRPC carries in the trailer `grpc-status-details-bin`, where libraries of other
//! languages look for it (google/rpc/status.proto).

use prost::Message;

use crate::v1::ErrorDetail;

/// By which an `Any` names the message.
const TYPE_URL: &str = "type.googleapis.com/dormouse.v1.ErrorDetail";

/// google/rpc/status.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// The bytes of a status with `detail` and the number of its gRPC code.
#[must_use]
pub fn encode(code: i32, detail: &ErrorDetail) -> Vec<u8> {
    let any = prost_types::Any {
        type_url: TYPE_URL.to_owned(),
        value: detail.encode_to_vec(),
    };
    RpcStatus {
        code,
        message: detail.what.clone(),
        details: vec![any],
    }
    .encode_to_vec()
}

/// The detail in the bytes of a status; `None` when they are none or hold no such detail.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<ErrorDetail> {
    let status = RpcStatus::decode(bytes).ok()?;
    let any = status
        .details
        .iter()
        // The part before the slash is the sender's choice (google/protobuf/any.proto).
        .find(|any| any.type_url.rsplit('/').next() == TYPE_URL.rsplit('/').next())?;
    ErrorDetail::decode(any.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_wire() {
        let detail = ErrorDetail {
            code: "REQUEST_INVALID".to_owned(),
            field: "standby.idle_timeout".to_owned(),
            ..ErrorDetail::default()
        };
        let bytes = encode(3, &detail);
        assert_eq!(decode(&bytes), Some(detail));
        assert_eq!(decode(b"\xff"), None);
        assert_eq!(decode(&[]), None);
    }
}

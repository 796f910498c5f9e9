//! Requests and answers of monitors that speak HTTP over a Unix socket. Pure: no socket here.
//!
//! As much of RFC 9112 as they use: one request at a time on a connection, bodies with a length.

use std::fmt::Write as _;

use serde_json::Value;

/// The verb of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Asks.
    Get,
    /// Sets or does.
    Put,
    /// Changes.
    Patch,
}

impl Method {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
        }
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The verb.
    pub method: Method,
    /// The path, with its leading slash.
    pub path: String,
    /// What is sent as JSON.
    pub body: Option<Value>,
    /// Whether the tap's descriptor goes with it (`SCM_RIGHTS`).
    pub carries_tap: bool,
}

impl Request {
    /// A request of `method` at `path`, with nothing in it.
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            carries_tap: false,
        }
    }

    /// The same with a body.
    #[must_use]
    pub fn with(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = self.body.as_ref().map(Value::to_string).unwrap_or_default();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{} {} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n",
            self.method.as_str(),
            self.path
        );
        if self.body.is_some() {
            let _ = write!(
                text,
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        text.push_str("\r\n");
        text.push_str(&body);
        text.into_bytes()
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status, 100 to 599.
    pub status: u16,
    /// The body; empty when there is none.
    pub body: Vec<u8>,
}

/// Bytes that are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// No status line of HTTP/1.1.
    #[error("the answer does not begin with an HTTP status")]
    NoStatus,
    /// A header that is not `name: value`, or a length that is no number.
    #[error("a header of the answer is not readable")]
    BadHeader,
    /// More than [`MAX_ANSWER`] bytes.
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    Long,
}

/// The longest answer that is accepted.
pub const MAX_ANSWER: usize = 1 << 20;

/// Reads an answer from the beginning of `bytes`: the answer and its length, or `None` when more bytes are
/// needed. Total.
///
/// # Errors
/// When the bytes can never become an answer.
pub fn decode(bytes: &[u8]) -> Result<Option<(Answer, usize)>, HttpError> {
    let Some(head_length) = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
    else {
        return if bytes.len() > MAX_ANSWER {
            Err(HttpError::Long)
        } else {
            Ok(None)
        };
    };
    let head = std::str::from_utf8(bytes.get(..head_length).unwrap_or_default());
    let mut lines = head.map_err(|_| HttpError::BadHeader)?.lines();
    let status = lines.next().and_then(parse_status).ok_or(HttpError::NoStatus)?;
    let mut length = 0_usize;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(HttpError::BadHeader)?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| HttpError::BadHeader)?;
        }
    }
    if length > MAX_ANSWER {
        return Err(HttpError::Long);
    }
    let whole = head_length + length;
    let body = bytes.get(head_length..whole);
    Ok(body.map(|body| {
        (
            Answer {
                status,
                body: body.to_vec(),
            },
            whole,
        )
    }))
}

/// `HTTP/1.1 204 No Content`.
fn parse_status(line: &str) -> Option<u16> {
    let mut words = line.split(' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    words
        .next()?
        .parse()
        .ok()
        .filter(|status| (100..600).contains(status))
}

/// Requests as text for golden files: one a line with its body.
#[cfg(test)]
pub(crate) fn show(requests: &[Request]) -> String {
    let line = |request: &Request| {
        let tap = if request.carries_tap { " +tap" } else { "" };
        let body = request
            .body
            .as_ref()
            .map(|body| format!(" {body}"))
            .unwrap_or_default();
        format!("{} {}{tap}{body}\n", request.method.as_str(), request.path)
    };
    requests.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_on_the_wire() {
        let request = Request::new(Method::Put, "/vm.resize").with(json!({"a": 1}));
        let want = "PUT /vm.resize HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
                    Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(String::from_utf8(request.encode()).unwrap(), want);
    }

    #[test]
    fn answers() {
        let whole = b"HTTP/1.1 400 Bad Request\r\nServer: x\r\ncontent-length: 3\r\n\r\nabcHTTP";
        let (answer, length) = decode(whole).unwrap().unwrap();
        assert_eq!(
            (answer.status, answer.body.as_slice(), length),
            (400, &b"abc"[..], whole.len() - 4)
        );
        for cut in 0..whole.len() - 4 {
            assert_eq!(decode(&whole[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(
            decode(b"HTTP/1.1 204 \r\n\r\n").unwrap().unwrap().0,
            Answer {
                status: 204,
                body: vec![]
            }
        );
        for (bytes, want) in [
            (&b"SSH-2.0\r\n\r\n"[..], HttpError::NoStatus),
            (b"HTTP/1.1 999\r\n\r\n", HttpError::NoStatus),
            (b"HTTP/1.1 200\r\nx\r\n\r\n", HttpError::BadHeader),
            (
                b"HTTP/1.1 200\r\ncontent-length: -1\r\n\r\n",
                HttpError::BadHeader,
            ),
            (
                b"HTTP/1.1 200\r\ncontent-length: 9999999\r\n\r\n",
                HttpError::Long,
            ),
        ] {
            assert_eq!(decode(bytes), Err(want));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = decode(&bytes);
        }
    }
}

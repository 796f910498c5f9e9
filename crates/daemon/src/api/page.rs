//! Pages of lists: in the order of a key, resumed after the last key sent.
//!
//! A token is the query that it belongs to, hashed, and the last key sent: `HHHHHHHHHHHHHHHH-KEY`, the key
//! in hexadecimal. It is good for as long as the query is, also after a restart, whatever came or went.

use std::str::FromStr;

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::refusal::FieldError;
use super::status::status;

/// Entries of a page when the caller does not say.
const DEFAULT: usize = 1000;

/// Most entries of a page: what a client can have the daemon hold at a time.
const MOST: usize = 1000;

/// Bytes of the hash of a query.
const QUERY: usize = 8;

/// Which page of which list is asked for.
#[derive(Debug)]
pub(super) struct Page {
    query: String,
    size: usize,
    /// The key after which the page begins.
    after: Option<String>,
}

impl Page {
    /// The page of `list` after `token`. `query` is the request without size and token of the page: what
    /// else it says must be the same on every page.
    pub(super) fn new(list: &str, query: &impl Message, size: u32, token: &str) -> Result<Self, Status> {
        let size = match usize::try_from(size) {
            Ok(0) | Err(_) => DEFAULT,
            Ok(size) => size.min(MOST),
        };
        let hash = Sha256::new_with_prefix(list)
            .chain_update(query.encode_to_vec())
            .finalize();
        let query = hex(hash.get(..QUERY).unwrap_or_default());
        let after = match token {
            "" => None,
            token => Some(read(token, &query).map_err(|what| status(&FieldError::new("page_token", what)))?),
        };
        Ok(Self { query, size, after })
    }

    /// The key after which the page begins, for a list that can begin there.
    pub(super) fn after<T: FromStr>(&self) -> Option<T> {
        self.after.as_ref()?.parse().ok()
    }

    /// Cuts the page out of `all`, which is in the order of `key`; with the token of the next one. Takes
    /// no more of `all` than it needs.
    pub(super) fn cut<T>(
        self,
        all: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> String,
    ) -> (Vec<T>, String) {
        let mut page: Vec<T> = all
            .into_iter()
            .filter(|item| self.after.as_ref().is_none_or(|after| key(item) > *after))
            .take(self.size + 1)
            .collect();
        let more = page.len() > self.size;
        page.truncate(self.size);
        let next = match page.last() {
            Some(last) if more => format!("{}-{}", self.query, hex(key(last).as_bytes())),
            Some(_) | None => String::new(),
        };
        (page, next)
    }
}

/// The key in a token of `query`.
fn read(token: &str, query: &str) -> Result<String, &'static str> {
    const FOREIGN: &str = "is none of ours";
    let (of, key) = token.split_once('-').ok_or(FOREIGN)?;
    if of.len() != 2 * QUERY || !of.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(FOREIGN);
    }
    let bytes: Option<Vec<u8>> = key
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect();
    let key = bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or(FOREIGN)?;
    if of != query {
        return Err("is of another query: the filter must be the same on every page");
    }
    Ok(key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_proto::v1::ListImagesRequest;

    fn query(name: &str) -> ListImagesRequest {
        ListImagesRequest {
            name: name.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn pages_join_to_the_whole() {
        let all: Vec<u32> = (10..15).collect();
        let mut token = String::new();
        let mut seen = Vec::new();
        loop {
            let page = Page::new("numbers", &query(""), 2, &token).unwrap();
            let (page, next) = page.cut(all.clone(), u32::to_string);
            assert!(page.len() <= 2);
            seen.extend(page);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_page_goes_on_where_its_last_entry_was_though_that_is_gone() {
        let first = Page::new("numbers", &query(""), 2, "").unwrap();
        let (_, token) = first.cut(vec![10_u32, 11, 12, 13], u32::to_string);
        let second = Page::new("numbers", &query(""), 2, &token).unwrap();
        assert_eq!(second.cut(vec![10_u32, 12, 13], u32::to_string).0, [12, 13]);
    }

    #[test]
    fn tokens_of_others_are_refused_and_the_field_is_named() {
        let page = Page::new("numbers", &query(""), 1, "").unwrap();
        let (_, token) = page.cut(vec![1_u32, 2], u32::to_string);
        assert!(Page::new("numbers", &query(""), 3, &token).is_ok());
        for (list, name, token) in [
            ("numbers", "web", token.as_str()),
            ("letters", "", token.as_str()),
            ("numbers", "", "garbage"),
            ("numbers", "", "-"),
            ("numbers", "", "0123456789abcdef-3"),
            ("numbers", "", "0123456789abcdef-zz"),
            ("numbers", "", "0123456789abcdef-ff"),
            ("numbers", "", &"x".repeat(2000)),
        ] {
            let refused = Page::new(list, &query(name), 1, token).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().starts_with("page_token: "), "{refused:?}");
        }
    }
}

//! Pages of lists: in the order of a key, resumed after the last key sent.

use tonic::Status;

use super::convert::FieldError;
use super::status::status;

/// Entries of a page when the caller does not say.
const DEFAULT: usize = 1000;

/// Most entries of a page.
const MOST: usize = 10_000;

/// Cuts the page after `token` out of `all`, which is in the order of `key`.
pub(super) fn cut<T>(
    all: Vec<T>,
    key: impl Fn(&T) -> String,
    size: u32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let size = match usize::try_from(size) {
        Ok(0) | Err(_) => DEFAULT,
        Ok(size) => size.min(MOST),
    };
    if token.len() > 1024 {
        return Err(status(&FieldError::new("page_token", "is none of ours")));
    }
    let mut page: Vec<T> = all
        .into_iter()
        .filter(|item| token.is_empty() || key(item).as_str() > token)
        .take(size + 1)
        .collect();
    let next = if page.len() > size {
        page.truncate(size);
        page.last().map(key).unwrap_or_default()
    } else {
        String::new()
    };
    Ok((page, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_join_to_the_whole() {
        let all: Vec<u32> = (10..15).collect();
        let mut token = String::new();
        let mut seen = Vec::new();
        loop {
            let (page, next) = cut(all.clone(), u32::to_string, 2, &token).unwrap();
            assert!(page.len() <= 2);
            seen.extend(page);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, all);
        assert!(cut(all, u32::to_string, 0, &"x".repeat(2000)).is_err());
    }
}

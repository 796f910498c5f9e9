//! How images are named: `name`, `name:tag`, or a digest's beginning.

use std::fmt;
use std::str::FromStr;

use crate::error::ImageError;

/// The tag of a name without one.
pub const DEFAULT_TAG: &str = "latest";

/// Longest name with its tag.
const MAX_LENGTH: usize = 255;

/// Longest tag (OCI distribution specification).
const MAX_TAG_LENGTH: usize = 128;

/// Fewest digits of a digest that name an image.
const MIN_DIGITS: usize = 4;

/// A name with a tag, such as `registry:5000/team/web:1.2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    name: String,
    tag: String,
}

impl ImageName {
    /// The name without the tag.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let wrong = |why| ImageError::ReferenceInvalid {
            text: text.to_owned(),
            why,
        };
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(wrong("it is empty or longer than 255 characters"));
        }
        // A colon before a slash is a port.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            Some(_) | None => (text, DEFAULT_TAG),
        };
        let tag_start = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let tag_rest = |c: char| tag_start(c) || c == '.' || c == '-';
        if tag.len() > MAX_TAG_LENGTH || !tag.starts_with(tag_start) || !tag.chars().all(tag_rest) {
            return Err(wrong(
                "its tag has characters other than letters, digits, '_', '.' and '-'",
            ));
        }
        let mut components = name.split('/');
        let first = components.next().unwrap_or("");
        let host = name.contains('/')
            && first
                .split_once(':')
                .is_some_and(|(h, p)| is_component(h) && is_port(p));
        if !(host || is_component(first)) || !components.all(is_component) {
            return Err(wrong(
                "its name has characters other than a-z, 0-9 and single '.', '_', '-' between them",
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

/// Lower-case letters and digits, separated by dots, dashes and underscores.
fn is_component(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| letter(c) || matches!(c, '.' | '_' | '-');
    text.starts_with(letter) && text.ends_with(letter) && text.chars().all(inner) && !text.contains("..")
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// What a caller wrote to name an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    /// A name; `digits` when the text may be a digest's beginning as well. A name wins.
    Name { name: ImageName, digits: Option<String> },
    /// The beginning of a digest.
    Digits(String),
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        let is_digits = |digits: &str| {
            (MIN_DIGITS..=64).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if let Some(digits) = text.strip_prefix("sha256:") {
            return if is_digits(digits) {
                Ok(Self::Digits(digits.to_ascii_lowercase()))
            } else {
                Err(ImageError::ReferenceInvalid {
                    text: text.to_owned(),
                    why: "a digest has 4 to 64 digits",
                })
            };
        }
        let digits = is_digits(text).then(|| text.to_ascii_lowercase());
        match text.parse() {
            Ok(name) => Ok(Self::Name { name, digits }),
            Err(error) => digits.map(Self::Digits).ok_or(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Option<(&str, &str)>) {
        let got = text.parse::<ImageName>().ok();
        assert_eq!(
            got.as_ref().map(|name| (name.name(), name.tag())),
            want,
            "{text:?}"
        );
    }

    #[test]
    fn names() {
        check("web", Some(("web", "latest")));
        check("web:1.2", Some(("web", "1.2")));
        check("team/web_x:V1", Some(("team/web_x", "V1")));
        check(
            "localhost:5000/team/web",
            Some(("localhost:5000/team/web", "latest")),
        );
        check("localhost:5000/web:a", Some(("localhost:5000/web", "a")));
        for wrong in [
            "",
            "Web",
            "web:",
            ":a",
            "/web",
            "web/",
            "a//b",
            "a..b",
            "-a",
            "a-",
            "../etc",
            "web:.a",
            "a b",
            "host:x/web",
            "web@sha256:00",
            "é",
        ] {
            check(wrong, None);
        }
        check(&"a".repeat(256), None);
    }

    #[test]
    fn digits_and_names_are_told_apart() {
        assert!(matches!(Reference::parse("sha256:BA78"), Ok(Reference::Digits(d)) if d == "ba78"));
        assert!(matches!(
            Reference::parse("beef"),
            Ok(Reference::Name { digits: Some(_), .. })
        ));
        assert!(matches!(
            Reference::parse("web"),
            Ok(Reference::Name { digits: None, .. })
        ));
        assert!(matches!(Reference::parse("BEEF"), Ok(Reference::Digits(_))));
        for wrong in ["sha256:", "sha256:12", "sha256:xyzw", "sha512:1234/x:y:z"] {
            assert!(Reference::parse(wrong).is_err(), "{wrong}");
        }
    }
}

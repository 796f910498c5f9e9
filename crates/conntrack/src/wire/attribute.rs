//! The walk over netlink attributes (`struct nlattr` in include/uapi/linux/netlink.h).

use super::WireError;

/// Size of an attribute's header: length and kind, two bytes each in the host's order.
const HEADER_BYTES: usize = 4;

/// The bits of a kind that name it; the others say "nested" and "big endian".
const KIND_MASK: u16 = 0x3fff;

/// The attributes in a run of bytes, in order.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its kind without flags.
    pub kind: u16,
    /// Its value without padding.
    pub value: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in `bytes`, a whole number of padded attributes.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn split(&mut self) -> Result<Attribute<'a>, WireError> {
        let got = self.rest.len();
        let Some((&[l0, l1, k0, k1], _)) = self.rest.split_first_chunk::<HEADER_BYTES>() else {
            return Err(WireError::Attribute { got, said: 0 });
        };
        let said = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self
            .rest
            .get(HEADER_BYTES..said)
            .ok_or(WireError::Attribute { got, said })?;
        // The last one may come without its padding.
        self.rest = self.rest.get(said.next_multiple_of(4)..).unwrap_or_default();
        Ok(Attribute {
            kind: u16::from_ne_bytes([k0, k1]) & KIND_MASK,
            value,
        })
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.split();
        if item.is_err() {
            // Nothing after a broken length can be found again.
            self.rest = &[];
        }
        Some(item)
    }
}

impl Attribute<'_> {
    /// The value as an array of exactly `N` bytes.
    ///
    /// # Errors
    /// When it has another size.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], WireError> {
        self.value.try_into().map_err(|_| WireError::Size {
            kind: self.kind,
            got: self.value.len(),
        })
    }

    /// The value as one byte.
    ///
    /// # Errors
    /// When it has another size.
    pub fn byte(&self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The value as a big-endian number of 16 bits.
    ///
    /// # Errors
    /// When it has another size.
    pub fn port(&self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], want: &[Result<(u16, &[u8]), WireError>]) {
        let got: Vec<_> = Attributes::new(bytes)
            .map(|item| item.map(|a| (a.kind, a.value)))
            .collect();
        assert_eq!(got, want, "{bytes:?}");
    }

    #[test]
    fn walks() {
        // Lengths and kinds are in the host's order; these tests are written for little endian.
        if cfg!(target_endian = "big") {
            return;
        }
        check(&[], &[]);
        check(&[4, 0, 1, 0], &[Ok((1, &[]))]);
        check(
            &[5, 0, 1, 0x80, 9, 0, 0, 0, 4, 0, 2, 0],
            &[Ok((1, &[9])), Ok((2, &[]))],
        );
        check(&[5, 0, 1, 0, 9], &[Ok((1, &[9]))]);
        check(&[3, 0, 1, 0], &[Err(WireError::Attribute { got: 4, said: 3 })]);
        check(
            &[0, 0, 0, 0, 0, 0, 0, 0],
            &[Err(WireError::Attribute { got: 8, said: 0 })],
        );
        check(
            &[9, 0, 1, 0, 1, 2, 3, 4],
            &[Err(WireError::Attribute { got: 8, said: 9 })],
        );
        check(
            &[4, 0, 1, 0, 1],
            &[Ok((1, &[])), Err(WireError::Attribute { got: 1, said: 0 })],
        );
    }
}

//! What the bytes of a damaged record still tell, so that nobody else is given it. Believed is only what is
//! said twice or can be checked: this is never a way to read a record.

use dormouse_model::{Addresses, Name, WorkloadId};
use dormouse_network::AddressPool;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Salvage {
    /// The first thing that looks like the name where names are. Reserving a wrong one does no harm.
    pub(crate) name: Option<Name>,
    /// Addresses of the pool that the record names in at least two of its three fields.
    pub(crate) addresses: Option<Addresses>,
}

/// Lengths of the fields for IPv4, IPv6 and MAC, as they stand before them.
const IPV4: u8 = 4;
const IPV6: u8 = 16;
const MAC: u8 = 6;

/// The tag of the first field, of record and specification alike: id and name.
const FIRST_FIELD: u8 = 0x0a;

/// Looks through the bytes of the record of `id`.
pub(crate) fn salvage(id: WorkloadId, bytes: &[u8], pool: &AddressPool) -> Salvage {
    Salvage {
        name: name(id, bytes),
        addresses: addresses(bytes, pool),
    }
}

fn name(id: WorkloadId, bytes: &[u8]) -> Option<Name> {
    let own = id.bits().to_be_bytes();
    bytes.iter().enumerate().find_map(|(at, tag)| {
        let length = usize::from(*bytes.get(at + 1)?);
        let text = bytes.get(at + 2..at + 2 + length)?;
        (*tag == FIRST_FIELD && text != own)
            .then(|| std::str::from_utf8(text).ok()?.parse().ok())
            .flatten()
    })
}

fn addresses(bytes: &[u8], pool: &AddressPool) -> Option<Addresses> {
    let said = |length: u8, octets: &[u8]| {
        bytes
            .windows(octets.len() + 1)
            .any(|window| window.split_first() == Some((&length, octets)))
    };
    let candidates = bytes.windows(5).filter_map(|window| match window {
        // The last four bytes of a MAC are the address, see AddressPool; four after their length are it too.
        [IPV4, a, b, c, d] | [0xd0, a, b, c, d] => pool.of([*a, *b, *c, *d].into()),
        _ => None,
    });
    candidates.into_iter().find(|found| {
        let fields = [
            said(IPV4, &found.ipv4.octets()),
            said(IPV6, &found.ipv6.octets()),
            said(MAC, &found.mac.0),
        ];
        fields.into_iter().filter(|is_said| *is_said).count() >= 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::remembered;
    use proptest::prelude::*;

    fn pool() -> AddressPool {
        AddressPool::new("10.78.0.0/16".parse().unwrap(), "fd78::/48".parse().unwrap())
    }

    /// A record with addresses of the pool, and what should be found in it.
    fn record() -> (WorkloadId, Vec<u8>, Salvage) {
        let mut remembered = remembered();
        remembered.view.addresses = pool().of([10, 78, 3, 9].into()).unwrap();
        let id = remembered.view.id;
        let key = dormouse_store::Key::from(id);
        let bytes = dormouse_store::record::encode(&key, &remembered.to_record());
        let want = Salvage {
            name: Some(remembered.view.spec.name.clone()),
            addresses: Some(remembered.view.addresses),
        };
        (id, bytes, want)
    }

    #[test]
    fn a_whole_record_tells_all() {
        let (id, bytes, want) = record();
        assert_eq!(salvage(id, &bytes, &pool()), want);
        assert_eq!(salvage(id, &[], &pool()), Salvage::default());
    }

    #[test]
    fn addresses_survive_any_single_byte() {
        let (id, bytes, want) = record();
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                assert_eq!(
                    salvage(id, &bytes, &pool()).addresses,
                    want.addresses,
                    "byte {at} with {flip:#x}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn cut_and_garbled_bytes_tell_nothing_wrong(
            cut in 0_usize..400,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let (id, bytes, want) = record();
            let mut cut = bytes.get(..cut.min(bytes.len())).unwrap().to_vec();
            cut.extend(noise);
            let found = salvage(id, &cut, &pool()).addresses;
            prop_assert!(found.is_none() || found == want.addresses);
        }
    }
}

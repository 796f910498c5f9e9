//! Which addresses are given away. Pure: whoever owns the records of workloads owns one of these
//! and fills it from them at start.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use dormouse_model::{Addresses, Fault, Kind, MacAddress};
use ipnet::{Ipv4Net, Ipv6Net};

/// The addresses of both families as one row of numbered places: place `n` is the `n`-th address of
/// the IPv4 pool, and its IPv6 address and MAC follow from that.
///
/// Places are given in a circle, so that an address rests as long as possible before it is given to
/// somebody else: peers, caches and trackers remember.
#[derive(Debug, Clone)]
pub struct AddressPool {
    ipv4_pool: Ipv4Net,
    ipv6_prefix: Ipv6Net,
    taken: BTreeSet<u32>,
    next: u32,
}

/// The network's own address and the host's (which IPv6 uses) are not given away.
const FIRST: u32 = 2;

impl AddressPool {
    /// An empty pool over the two prefixes of a valid configuration.
    #[must_use]
    pub fn new(ipv4_pool: Ipv4Net, ipv6_prefix: Ipv6Net) -> Self {
        Self {
            ipv4_pool: ipv4_pool.trunc(),
            ipv6_prefix: ipv6_prefix.trunc(),
            taken: BTreeSet::new(),
            next: FIRST,
        }
    }

    /// The last place: the one after it is the broadcast address.
    fn last(&self) -> u32 {
        let host_bits = u32::from(32 - self.ipv4_pool.prefix_len().min(32));
        let size = 1_u64 << host_bits;
        u32::try_from(size.saturating_sub(2)).unwrap_or(u32::MAX - 1)
    }

    /// How many workloads fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        (self.last() + 1).saturating_sub(FIRST)
    }

    /// How many places are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.len()
    }

    /// Takes the free place that was free the longest, as far as this pool has seen.
    ///
    /// # Errors
    /// When all places are taken.
    pub fn allocate(&mut self) -> Result<Addresses, PoolError> {
        let place = self.free_from(self.next).or_else(|| self.free_from(FIRST));
        let place = place.ok_or_else(|| PoolError::Exhausted {
            capacity: self.capacity(),
        })?;
        self.taken.insert(place);
        self.next = if place >= self.last() { FIRST } else { place + 1 };
        Ok(self.addresses(place))
    }

    /// The first free place at or after `start`.
    fn free_from(&self, start: u32) -> Option<u32> {
        let mut place = start;
        for &taken in self.taken.range(start..) {
            if taken != place {
                break;
            }
            place = place.checked_add(1)?;
        }
        (place <= self.last()).then_some(place)
    }

    /// Takes the place of `addresses`, which a record says are in use.
    ///
    /// # Errors
    /// When they are not of this pool, do not belong together, or are taken.
    pub fn claim(&mut self, addresses: Addresses) -> Result<(), PoolError> {
        let place = self.place(addresses)?;
        if self.taken.insert(place) {
            Ok(())
        } else {
            Err(PoolError::Taken { ipv4: addresses.ipv4 })
        }
    }

    /// The addresses that belong to `ipv4`; `None` when it is no place of this pool.
    #[must_use]
    pub fn of(&self, ipv4: Ipv4Addr) -> Option<Addresses> {
        let place = ipv4.to_bits().checked_sub(self.ipv4_pool.network().to_bits())?;
        (FIRST..=self.last())
            .contains(&place)
            .then(|| self.addresses(place))
    }

    /// Gives a place back. To be called once nothing routes to it any more.
    ///
    /// # Errors
    /// When they are not of this pool, or were not taken.
    pub fn release(&mut self, addresses: Addresses) -> Result<(), PoolError> {
        let place = self.place(addresses)?;
        if self.taken.remove(&place) {
            Ok(())
        } else {
            Err(PoolError::Free { ipv4: addresses.ipv4 })
        }
    }

    fn place(&self, addresses: Addresses) -> Result<u32, PoolError> {
        let foreign = PoolError::Foreign {
            ipv4: addresses.ipv4,
            ipv6: addresses.ipv6,
        };
        let Some(place) = addresses
            .ipv4
            .to_bits()
            .checked_sub(self.ipv4_pool.network().to_bits())
        else {
            return Err(foreign);
        };
        let inside = (FIRST..=self.last()).contains(&place);
        if inside && self.addresses(place) == addresses {
            Ok(place)
        } else {
            Err(foreign)
        }
    }

    fn addresses(&self, place: u32) -> Addresses {
        let ipv4 = Ipv4Addr::from_bits(self.ipv4_pool.network().to_bits() | place);
        let ipv6 = Ipv6Addr::from_bits(self.ipv6_prefix.network().to_bits() | u128::from(place));
        let [a, b, c, d] = ipv4.octets();
        // Locally administered (bit 1 of the first byte), one per IPv4 address.
        Addresses {
            ipv4,
            ipv6,
            mac: MacAddress([0x02, 0xd0, a, b, c, d]),
        }
    }
}

/// Why a pool refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// All places are taken.
    #[error("all {capacity} addresses of the pool are taken")]
    Exhausted {
        /// How many there are.
        capacity: u32,
    },
    /// The place is taken.
    #[error("the address {ipv4} is taken")]
    Taken {
        /// Which.
        ipv4: Ipv4Addr,
    },
    /// The place was free.
    #[error("the address {ipv4} was not taken")]
    Free {
        /// Which.
        ipv4: Ipv4Addr,
    },
    /// Not a place of this pool.
    #[error("{ipv4} and {ipv6} are not a place of the pool")]
    Foreign {
        /// The IPv4 address.
        ipv4: Ipv4Addr,
        /// The IPv6 address.
        ipv6: Ipv6Addr,
    },
}

impl Fault for PoolError {
    fn kind(&self) -> Kind {
        match self {
            Self::Exhausted { .. } => Kind::Exhausted,
            Self::Taken { .. } => Kind::Exists,
            Self::Free { .. } => Kind::NotFound,
            Self::Foreign { .. } => Kind::Invalid,
        }
    }
    fn code(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "NETWORK_POOL_EXHAUSTED",
            Self::Taken { .. } => "NETWORK_ADDRESS_TAKEN",
            Self::Free { .. } => "NETWORK_ADDRESS_FREE",
            Self::Foreign { .. } => "NETWORK_ADDRESS_FOREIGN",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(prefix_length: u8) -> AddressPool {
        let ipv4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 78, 0, 0), prefix_length);
        AddressPool::new(ipv4, "fd78::/48".parse().unwrap())
    }

    #[test]
    fn places_are_given_in_a_circle_and_belong_together() {
        let mut pool = pool(29);
        assert_eq!(pool.capacity(), 5);
        let first = pool.allocate().unwrap();
        assert_eq!(first.ipv4.to_string(), "10.78.0.2");
        assert_eq!(first.ipv6.to_string(), "fd78::2");
        assert_eq!(first.mac.to_string(), "02:d0:0a:4e:00:02");
        pool.release(first).unwrap();
        let rest: Vec<_> = (0..5)
            .map(|_| pool.allocate().unwrap().ipv4.octets()[3])
            .collect();
        assert_eq!(rest, [3, 4, 5, 6, 2], "what was released comes last");
        assert_eq!(pool.allocate(), Err(PoolError::Exhausted { capacity: 5 }));
        assert_eq!(pool.claim(first), Err(PoolError::Taken { ipv4: first.ipv4 }));
        let mixed = Addresses {
            ipv6: Ipv6Addr::LOCALHOST,
            ..first
        };
        assert!(matches!(pool.release(mixed), Err(PoolError::Foreign { .. })));
        let outside = Addresses {
            ipv4: Ipv4Addr::new(10, 77, 0, 2),
            ..first
        };
        assert!(matches!(pool.claim(outside), Err(PoolError::Foreign { .. })));
    }

    proptest! {
        /// Nobody ever gets what somebody has, and the pool is exhausted only when it is full.
        #[test]
        fn never_twice(steps in prop::collection::vec((any::<bool>(), 0_usize..40), 1..200)) {
            let mut pool = pool(27);
            let mut held: Vec<Addresses> = Vec::new();
            for (give_back, which) in steps {
                if give_back && !held.is_empty() {
                    let back = held.swap_remove(which % held.len());
                    prop_assert_eq!(pool.release(back), Ok(()));
                    prop_assert!(pool.release(back).is_err());
                } else {
                    match pool.allocate() {
                        Ok(new) => {
                            prop_assert!(!held.contains(&new));
                            prop_assert!(new.ipv4 != Ipv4Addr::new(10, 78, 0, 31));
                            held.push(new);
                        }
                        Err(_) => prop_assert_eq!(held.len(), pool.capacity() as usize),
                    }
                }
                prop_assert_eq!(pool.taken(), held.len());
            }
        }
    }
}

//! The address allocator: one IPv4 pool and one IPv6 ULA prefix, one address of each a workload.
//!
//! Pure and in memory. The durable truth is the workloads' records; a starting daemon claims what
//! they name. An address is given back only by [`Allocator::release`], which the removal calls after
//! links and record are gone: until then a second owner would receive the first one's packets.
//!
//! An index `n` of the pool gives both addresses and the MAC, so that they belong together by sight:
//! with the pool 10.64.0.0/16 and the prefix fd00:64::/48 the workload 258 has 10.64.1.2,
//! fd00:64::102 and 02:d0:00:00:01:02.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use dormouse_model::{Addresses, Fault, Kind, MacAddress, WorkloadId};
use ipnet::{Ipv4Net, Ipv6Net};

/// Hands out addresses. Bounded by the pool.
#[derive(Debug, Clone)]
pub struct Allocator {
    pool: Ipv4Net,
    prefix: Ipv6Net,
    owners: BTreeMap<u32, WorkloadId>,
    /// Where the next search begins: addresses rest as long as the pool allows, so that a flow to
    /// one that was given back does not meet its next owner.
    next: u32,
}

impl Allocator {
    /// An allocator over `pool` and `prefix`, with nothing taken.
    ///
    /// # Errors
    /// When the pool has no room for a workload, or the prefix has less room than the pool.
    pub fn new(pool: Ipv4Net, prefix: Ipv6Net) -> Result<Self, AddressError> {
        // The first address names the network and the last is its broadcast; both are left alone,
        // although a /32 each would not need it, because people's tools treat them apart.
        if pool.prefix_len() > 30 || pool.prefix_len() < 8 {
            return Err(AddressError::PoolSize { pool });
        }
        if prefix.prefix_len() > 96 {
            return Err(AddressError::PrefixSize { prefix });
        }
        Ok(Self {
            pool: pool.trunc(),
            prefix: prefix.trunc(),
            owners: BTreeMap::new(),
            next: 1,
        })
    }

    /// How many workloads fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        // Prefix lengths are 8 to 30, so the shift is at most 24 and the difference at least 2.
        (1_u32 << (32 - u32::from(self.pool.prefix_len()))) - 2
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.owners.len()
    }

    /// Takes the next free addresses for `owner`.
    ///
    /// # Errors
    /// When every address is taken.
    pub fn allocate(&mut self, owner: WorkloadId) -> Result<Addresses, AddressError> {
        let last = self.capacity();
        let free = (self.next..=last)
            .chain(1..self.next)
            .find(|index| !self.owners.contains_key(index))
            .ok_or(AddressError::Exhausted { pool: self.pool })?;
        self.owners.insert(free, owner);
        self.next = if free == last { 1 } else { free + 1 };
        Ok(self.of(free))
    }

    /// Takes the addresses that `owner`'s record names. For starting daemons; idempotent.
    ///
    /// # Errors
    /// When they are not of this pool, do not belong together, or are another's.
    pub fn claim(&mut self, owner: WorkloadId, addresses: Addresses) -> Result<(), AddressError> {
        let index = self
            .index_of(addresses)
            .ok_or(AddressError::Foreign { addresses })?;
        match self.owners.get(&index) {
            Some(other) if *other != owner => Err(AddressError::Taken {
                addresses,
                owner: *other,
            }),
            Some(_) => Ok(()),
            None => {
                self.owners.insert(index, owner);
                Ok(())
            }
        }
    }

    /// Gives back what `owner` has. Idempotent: says whether it had anything.
    pub fn release(&mut self, owner: WorkloadId) -> bool {
        let before = self.owners.len();
        self.owners.retain(|_, other| *other != owner);
        before != self.owners.len()
    }

    /// The owner of an IPv4 address.
    #[must_use]
    pub fn owner(&self, address: Ipv4Addr) -> Option<WorkloadId> {
        let index = u32::from(address).checked_sub(u32::from(self.pool.network()))?;
        self.owners.get(&index).copied()
    }

    fn of(&self, index: u32) -> Addresses {
        let [a, b, c, d] = index.to_be_bytes();
        Addresses {
            ipv4: Ipv4Addr::from(u32::from(self.pool.network()) | index),
            ipv6: Ipv6Addr::from(u128::from(self.prefix.network()) | u128::from(index)),
            // Bit 1 of the first byte: locally administered; bit 0 clear: unicast (IEEE 802 §8.2).
            mac: MacAddress([0x02, 0xd0, a, b, c, d]),
        }
    }

    fn index_of(&self, addresses: Addresses) -> Option<u32> {
        let index = u32::from(addresses.ipv4).checked_sub(u32::from(self.pool.network()))?;
        let known = (1..=self.capacity()).contains(&index) && self.of(index) == addresses;
        known.then_some(index)
    }
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The pool is too small or too large.
    #[error("the address pool {pool} is not usable: use a prefix of 8 to 30 bits")]
    PoolSize {
        /// What was given.
        pool: Ipv4Net,
    },
    /// The IPv6 prefix leaves too few bits.
    #[error("the address prefix {prefix} is not usable: use one of at most 96 bits")]
    PrefixSize {
        /// What was given.
        prefix: Ipv6Net,
    },
    /// All taken.
    #[error("every address of {pool} is taken")]
    Exhausted {
        /// The pool.
        pool: Ipv4Net,
    },
    /// A record names addresses that this pool would not give.
    #[error("the addresses {} and {} are not a pair of the configured pools", .addresses.ipv4, .addresses.ipv6)]
    Foreign {
        /// What was named.
        addresses: Addresses,
    },
    /// Two records name one address.
    #[error("the address {} belongs to {owner}", .addresses.ipv4)]
    Taken {
        /// What was named.
        addresses: Addresses,
        /// Whose it is.
        owner: WorkloadId,
    },
}

impl Fault for AddressError {
    fn kind(&self) -> Kind {
        match self {
            Self::PoolSize { .. } | Self::PrefixSize { .. } => Kind::Invalid,
            Self::Exhausted { .. } => Kind::Exhausted,
            Self::Foreign { .. } | Self::Taken { .. } => Kind::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::PoolSize { .. } => "INSTANCE_ADDRESS_POOL_INVALID",
            Self::PrefixSize { .. } => "INSTANCE_ADDRESS_PREFIX_INVALID",
            Self::Exhausted { .. } => "INSTANCE_ADDRESSES_EXHAUSTED",
            Self::Foreign { .. } => "INSTANCE_ADDRESS_FOREIGN",
            Self::Taken { .. } => "INSTANCE_ADDRESS_TAKEN",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allocator(pool: &str) -> Allocator {
        Allocator::new(pool.parse().unwrap(), "fd00:64::/48".parse().unwrap()).unwrap()
    }

    fn id(bits: u128) -> WorkloadId {
        WorkloadId::from_bits(bits)
    }

    #[test]
    fn both_addresses_and_the_mac_belong_together() {
        let mut allocator = allocator("10.64.0.0/16");
        let mut last = allocator.allocate(id(0)).unwrap();
        assert_eq!(last.ipv4.to_string(), "10.64.0.1");
        for owner in 1..258 {
            last = allocator.allocate(id(owner)).unwrap();
        }
        assert_eq!(last.ipv4.to_string(), "10.64.1.2");
        assert_eq!(last.ipv6.to_string(), "fd00:64::102");
        assert_eq!(last.mac.to_string(), "02:d0:00:00:01:02");
    }

    #[test]
    fn unusable_pools_are_refused() {
        let prefix: Ipv6Net = "fd00::/48".parse().unwrap();
        for (pool, usable) in [
            ("10.0.0.0/31", false),
            ("10.0.0.0/30", true),
            ("0.0.0.0/0", false),
        ] {
            assert_eq!(
                Allocator::new(pool.parse().unwrap(), prefix).is_ok(),
                usable,
                "{pool}"
            );
        }
        let narrow = Allocator::new("10.0.0.0/16".parse().unwrap(), "fd00::/112".parse().unwrap());
        assert!(matches!(narrow, Err(AddressError::PrefixSize { .. })));
    }

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let mut allocator = allocator("10.0.0.0/29");
        let first = allocator.allocate(id(1)).unwrap();
        assert!(allocator.release(id(1)));
        assert!(!allocator.release(id(1)), "again");
        for owner in 2..7 {
            assert_ne!(allocator.allocate(id(owner)).unwrap(), first);
        }
        assert_eq!(allocator.allocate(id(7)).unwrap(), first, "the last one free");
        assert!(matches!(
            allocator.allocate(id(8)),
            Err(AddressError::Exhausted { .. })
        ));
    }

    #[test]
    fn claims_of_strange_or_foreign_addresses_are_refused() {
        let mut allocator = allocator("10.0.0.0/24");
        let mine = allocator.allocate(id(1)).unwrap();
        assert_eq!(allocator.claim(id(1), mine), Ok(()));
        assert!(
            matches!(allocator.claim(id(2), mine), Err(AddressError::Taken { owner, .. }) if owner == id(1))
        );
        let mixed = Addresses {
            ipv6: "fd00:64::9".parse().unwrap(),
            ..mine
        };
        assert!(matches!(
            allocator.claim(id(2), mixed),
            Err(AddressError::Foreign { .. })
        ));
        let outside = Addresses {
            ipv4: "10.0.1.1".parse().unwrap(),
            ..mine
        };
        assert!(matches!(
            allocator.claim(id(2), outside),
            Err(AddressError::Foreign { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_address_has_two_owners(steps in prop::collection::vec((0..3_u8, 0..12_u128), 0..200)) {
            let mut allocator = allocator("10.0.0.0/29");
            let mut model: BTreeMap<Ipv4Addr, u128> = BTreeMap::new();
            for (act, owner) in steps {
                match act {
                    0 if !model.values().any(|other| *other == owner) => match allocator.allocate(id(owner)) {
                        Ok(addresses) => prop_assert_eq!(model.insert(addresses.ipv4, owner), None),
                        Err(_) => prop_assert_eq!(model.len(), 6),
                    },
                    _ => {
                        allocator.release(id(owner));
                        model.retain(|_, other| *other != owner);
                    }
                }
                prop_assert_eq!(allocator.taken(), model.len());
                for (address, owner) in &model {
                    prop_assert_eq!(allocator.owner(*address), Some(id(*owner)));
                }
            }
        }
    }
}

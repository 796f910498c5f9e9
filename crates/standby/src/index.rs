//! From an address or a flow to the workload that it is for.

use std::collections::HashMap;
use std::net::IpAddr;

use dormouse_model::{Flow, FlowKey};

use crate::roster::Place;

/// The index. Parsed addresses only; one look-up an event, whatever the number of workloads.
#[derive(Debug, Default)]
pub(crate) struct Index {
    addresses: HashMap<IpAddr, Place>,
    /// Flows to a published port: their key names the host's address, so that their end, which
    /// brings the key alone, would not find the guest.
    translated: HashMap<FlowKey, Place>,
}

impl Index {
    /// Gives `address` to `place`; returns who had it before, when that is somebody else.
    pub(crate) fn claim(&mut self, address: IpAddr, place: Place) -> Option<Place> {
        self.addresses
            .insert(address, place)
            .filter(|before| *before != place)
    }

    /// Takes `address` from `place`, unless somebody else claimed it meanwhile.
    pub(crate) fn release(&mut self, address: IpAddr, place: Place) {
        if self.addresses.get(&address) == Some(&place) {
            self.addresses.remove(&address);
        }
    }

    /// Whose address it is.
    pub(crate) fn at(&self, address: IpAddr) -> Option<Place> {
        self.addresses.get(&address).copied()
    }

    /// Who holds the flow `key`, if anybody does.
    pub(crate) fn holder(&self, key: &FlowKey) -> Option<Place> {
        if !self.translated.is_empty()
            && let Some(place) = self.translated.get(key)
        {
            return Some(*place);
        }
        self.at(key.destination)
    }

    /// Notes that `place` holds `flow`, when its key alone would not lead there.
    pub(crate) fn hold(&mut self, flow: &Flow, place: Place) {
        if flow.key.destination == flow.responder {
            self.forget(&flow.key);
        } else {
            self.translated.insert(flow.key, place);
        }
    }

    /// Forgets a flow that nobody holds any more.
    pub(crate) fn forget(&mut self, key: &FlowKey) {
        if !self.translated.is_empty() {
            self.translated.remove(key);
        }
    }

    /// How many translated flows are known.
    pub(crate) fn translated(&self) -> usize {
        self.translated.len()
    }

    /// Forgets the translated flows that `held` no longer knows.
    pub(crate) fn retain_translated(&mut self, mut held: impl FnMut(&FlowKey, Place) -> bool) {
        self.translated.retain(|key, place| held(key, *place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_model::Protocol;

    fn flow(destination: [u8; 4], responder: [u8; 4]) -> Flow {
        let key = FlowKey {
            protocol: Protocol::Tcp,
            zone: 0,
            source: [192, 0, 2, 1].into(),
            source_port: 1000,
            destination: destination.into(),
            destination_port: 80,
        };
        Flow {
            key,
            responder: responder.into(),
            responder_port: 8080,
            tcp_state: None,
        }
    }

    #[test]
    fn a_published_flow_is_found_by_its_key() {
        let mut index = Index::default();
        let guest = Place::at(3);
        assert_eq!(index.claim([10, 0, 0, 3].into(), guest), None);
        let direct = flow([10, 0, 0, 3], [10, 0, 0, 3]);
        let published = flow([198, 51, 100, 1], [10, 0, 0, 3]);
        index.hold(&direct, guest);
        assert_eq!(index.translated(), 0, "a direct flow needs no entry");
        assert_eq!(index.holder(&published.key), None);
        index.hold(&published, guest);
        assert_eq!(index.holder(&published.key), Some(guest));
        index.forget(&published.key);
        assert_eq!(index.holder(&published.key), None);
        assert_eq!(index.holder(&direct.key), Some(guest));
    }

    #[test]
    fn a_late_release_does_not_take_the_address_from_its_new_owner() {
        let mut index = Index::default();
        let address = [10, 0, 0, 3].into();
        index.claim(address, Place::at(0));
        assert_eq!(index.claim(address, Place::at(1)), Some(Place::at(0)));
        index.release(address, Place::at(0));
        assert_eq!(index.at(address), Some(Place::at(1)));
        index.release(address, Place::at(1));
        assert_eq!(index.at(address), None);
    }
}

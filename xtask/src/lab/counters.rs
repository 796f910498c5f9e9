//! Counters of the kernel, read in the namespace of the calling thread.

use std::fs;

use anyhow::{Context, Result};

/// The value of `key` in the lines of `group` of a file in the form of /proc/net/snmp: a line of names,
/// then a line of values.
pub(crate) fn paired(text: &str, group: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split(' ').next() == Some(group));
    let names = lines.next()?;
    let values = lines.next()?;
    let place = names.split_whitespace().position(|name| name == key)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

/// The value of `key` in a file in the form of /proc/net/snmp6: a name and a value a line.
pub(crate) fn single(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// TCP's retransmits of this namespace's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Retransmits {
    /// Of SYNs (`TcpExtTCPSynRetrans`).
    pub syn: u64,
    /// Of all segments (`TcpRetransSegs`).
    pub all: u64,
}

impl Retransmits {
    /// Those up to now.
    pub(crate) fn now() -> Result<Self> {
        let netstat = fs::read_to_string("/proc/thread-self/net/netstat").context("reading net/netstat")?;
        let snmp = fs::read_to_string("/proc/thread-self/net/snmp").context("reading net/snmp")?;
        Ok(Self {
            syn: paired(&netstat, "TcpExt:", "TCPSynRetrans").context("no TCPSynRetrans in net/netstat")?,
            all: paired(&snmp, "Tcp:", "RetransSegs").context("no RetransSegs in net/snmp")?,
        })
    }

    /// Those since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { syn: self.syn.saturating_sub(earlier.syn), all: self.all.saturating_sub(earlier.all) }
    }
}

/// Packets dropped by the devices whose names begin with `prefix`, on the way out.
pub(crate) fn dropped_by_devices(prefix: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").context("reading net/dev")?;
    Ok(dropped(&text, prefix))
}

/// Field 12 after the colon of /proc/net/dev is the drops of the transmitting side.
fn dropped(text: &str, prefix: &str) -> u64 {
    let rows = text.lines().filter_map(|line| line.trim().split_once(':'));
    rows.filter(|(name, _)| name.starts_with(prefix))
        .filter_map(|(_, numbers)| numbers.split_whitespace().nth(11)?.parse::<u64>().ok())
        .sum()
}

/// Errors of checksums in the text of /proc/net/snmp and /proc/net/snmp6, one after the other.
pub(crate) fn checksum_errors(text: &str) -> Option<u64> {
    let four: Option<u64> = ["Tcp:", "Udp:", "Icmp:"].iter().map(|group| paired(text, group, "InCsumErrors")).sum();
    let six: Option<u64> = ["Udp6InCsumErrors", "Icmp6InCsumErrors"].iter().map(|key| single(text, key)).sum();
    Some(four? + six?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "Tcp: RtoMin InCsumErrors\nTcp: 200 1\nUdp: InCsumErrors NoPorts\nUdp: 2 9\n\
                        Icmp: InMsgs InCsumErrors\nIcmp: 7 4\nUdp6InCsumErrors     \t8\nIcmp6InCsumErrors 16\n";

    #[test]
    fn values_are_found_by_their_names() {
        assert_eq!(paired(SNMP, "Icmp:", "InMsgs"), Some(7));
        assert_eq!(paired(SNMP, "Icmp:", "OutMsgs"), None);
        assert_eq!(single(SNMP, "Udp6InCsumErrors"), Some(8));
        assert_eq!(checksum_errors(SNMP), Some(31));
        assert_eq!(checksum_errors("Tcp: RtoMin\nTcp: 200\n"), None);
    }

    #[test]
    fn drops_are_those_of_the_sender() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|\
                    bytes packets errs drop fifo colls carrier compressed\n  dmt1: 1 2 3 4 5 6 7 8 9 10 11 12 13\n\
                    \x20  lo: 1 1 1 1 1 1 1 1 1 1 1 99 1\n";
        assert_eq!(dropped(text, "dm"), 12);
        assert_eq!(dropped(text, "x"), 0);
    }

    #[test]
    fn this_kernel_has_the_counters() {
        assert!(Retransmits::now().is_ok());
    }
}

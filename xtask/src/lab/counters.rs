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
        Self {
            syn: self.syn.saturating_sub(earlier.syn),
            all: self.all.saturating_sub(earlier.all),
        }
    }
}

/// Packets that the devices whose names begin with `prefix` dropped on the way out, without what the host
/// itself says to all its neighbours: a tap's filter lets only the guest's own traffic into its queue and
/// counts the rest as dropped, which here is the kernel's multicast listener reports.
pub(crate) fn dropped_by_devices(prefix: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").context("reading net/dev")?;
    let of_device = |(name, dropped): (&str, u64)| {
        let path = format!("/proc/thread-self/net/dev_snmp6/{name}");
        let said = fs::read_to_string(path).unwrap_or_default();
        dropped.saturating_sub(multicast_sent(&said))
    };
    Ok(drops(&text, prefix).map(of_device).sum())
}

/// Devices and their drops: field 12 after the colon of /proc/net/dev is that of the transmitting side.
fn drops<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
    let rows = text.lines().filter_map(|line| line.trim().split_once(':'));
    rows.filter(move |(name, _)| name.starts_with(prefix))
        .filter_map(|(name, numbers)| Some((name, numbers.split_whitespace().nth(11)?.parse().ok()?)))
}

/// `Ip6OutMcastPkts` in the text of /proc/net/dev_snmp6/DEVICE: a name and a value a line.
fn multicast_sent(text: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix("Ip6OutMcastPkts"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Errors of checksums in what the benches' server says of its kernel: a name and a value a line. `None`
/// when a protocol is missing.
pub(crate) fn checksum_errors(text: &str) -> Option<u64> {
    const NAMES: [&str; 5] = [
        "Tcp.InCsumErrors",
        "Udp.InCsumErrors",
        "Icmp.InCsumErrors",
        "Udp6InCsumErrors",
        "Icmp6InCsumErrors",
    ];
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    NAMES.into_iter().map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_names() {
        let snmp = "Tcp: RtoMin InCsumErrors\nTcp: 200 1\nIcmp: InMsgs InCsumErrors\nIcmp: 7 4\n";
        assert_eq!(paired(snmp, "Icmp:", "InMsgs"), Some(7));
        assert_eq!(paired(snmp, "Icmp:", "OutMsgs"), None);
        let said = "Tcp.InCsumErrors 1\nTcp.RetransSegs 99\nUdp.InCsumErrors 2\nIcmp.InCsumErrors 4\n\
                    Udp6InCsumErrors 8\nIcmp6InCsumErrors 16\n";
        assert_eq!(checksum_errors(said), Some(31));
        assert_eq!(checksum_errors("Tcp.InCsumErrors 1\n"), None);
    }

    #[test]
    fn drops_are_those_of_the_sender() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|\
                    bytes packets errs drop fifo colls carrier compressed\n  dmt1: 1 2 3 4 5 6 7 8 9 10 11 12 13\n\
                    \x20  lo: 1 1 1 1 1 1 1 1 1 1 1 99 1\n";
        assert_eq!(drops(text, "dm").collect::<Vec<_>>(), [("dmt1", 12)]);
        assert_eq!(drops(text, "x").count(), 0);
        assert_eq!(multicast_sent("Ip6OutPkts 9\nIp6OutMcastPkts    \t4\n"), 4);
    }

    #[test]
    fn this_kernel_has_the_counters() {
        assert!(Retransmits::now().is_ok());
    }
}

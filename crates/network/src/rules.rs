//! The packet rules, as text for `nft -f -`. Pure.
//!
//! One `inet` table of ours, replaced chain by chain in one transaction; its two sets keep their
//! elements, so that a restart does not interrupt a running guest.

use crate::config::{FlowEvents, NetworkConfig};

/// The set of `(tap, source)` pairs that guests may send from.
pub(crate) const SOURCES_IPV4: &str = "sources_ipv4";
/// Likewise for IPv6.
pub(crate) const SOURCES_IPV6: &str = "sources_ipv6";

/// The transaction that makes our table, or brings it up to date.
pub(crate) fn install(config: &NetworkConfig) -> String {
    let table = config.table_name();
    let mut text = format!(
        "add table inet {table} {{ comment \"{}\"; }}\n",
        config.owner_mark()
    );
    for (set, kind) in [(SOURCES_IPV4, "ipv4_addr"), (SOURCES_IPV6, "ipv6_addr")] {
        text += &format!("add set inet {table} {set} {{ type ifname . {kind}; }}\n");
    }
    for chain in chains(config) {
        let name = chain.name;
        let hook = chain
            .hook
            .map(|hook| format!(" {{ {hook}; policy accept; }}"))
            .unwrap_or_default();
        text += &format!("add chain inet {table} {name}{hook}\nflush chain inet {table} {name}\n");
        for rule in chain.rules {
            text += &format!("add rule inet {table} {name} {rule}\n");
        }
    }
    text
}

/// The transaction that takes our table away.
pub(crate) fn uninstall(config: &NetworkConfig) -> String {
    format!("delete table inet {}\n", config.table_name())
}

struct Chain {
    name: &'static str,
    hook: Option<&'static str>,
    rules: Vec<String>,
}

/// A chain comes after those that it jumps to: they must exist when its rules are read.
fn chains(config: &NetworkConfig) -> Vec<Chain> {
    let (pool, prefix) = (config.ipv4_pool.trunc(), config.ipv6_prefix.trunc());
    let (taps, reentry) = (format!("{}*", config.tap_prefix()), config.reentry_device());
    // What comes back from the parking device was tracked, and translated, when it first came: a
    // second entry would clash with the first. What a guest sends must bear its own addresses.
    let ingress = vec![
        format!("iifname \"{reentry}\" notrack accept"),
        format!("iifname \"{taps}\" iifname . ip saddr @{SOURCES_IPV4} accept"),
        format!("iifname \"{taps}\" iifname . ip6 saddr @{SOURCES_IPV6} accept"),
        format!("iifname \"{taps}\" counter drop"),
    ];
    // These rules also are what switches tracking on: without one that asks, there is none.
    // New, destroyed and the protocol's state: what the observer needs, and nothing between.
    let wanted = "ct event set new,destroy,protoinfo";
    let mut events = vec![
        format!("ip daddr {pool} {wanted} return"),
        format!("ip6 daddr {prefix} {wanted} return"),
    ];
    match config.flow_events {
        FlowEvents::WorkloadsOnly => events.push("ct event set 0x0".to_owned()),
        FlowEvents::All => {}
    }
    let track = || vec!["ct state new jump events".to_owned()];
    let mut outwards = Vec::new();
    if config.masquerade {
        outwards.push(format!("ip saddr {pool} ip daddr != {pool} masquerade"));
        outwards.push(format!("ip6 saddr {prefix} ip6 daddr != {prefix} masquerade"));
    }
    // A release of a workload whose tap has just died would go round in a circle.
    let parking = config.parking_device();
    let mut forward = vec![format!(
        "iifname \"{reentry}\" oifname \"{parking}\" counter drop"
    )];
    forward.extend(track());
    let base = |name, hook, rules| Chain {
        name,
        hook: Some(hook),
        rules,
    };
    vec![
        Chain {
            name: "events",
            hook: None,
            rules: events,
        },
        base("ingress", "type filter hook prerouting priority raw", ingress),
        base("input", "type filter hook input priority filter", track()),
        base("forward", "type filter hook forward priority filter", forward),
        base("output", "type filter hook output priority filter", track()),
        base("outwards", "type nat hook postrouting priority srcnat", outwards),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let want = r#"add table inet dormouse_dm { comment "dormouse:host"; }
add set inet dormouse_dm sources_ipv4 { type ifname . ipv4_addr; }
add set inet dormouse_dm sources_ipv6 { type ifname . ipv6_addr; }
add chain inet dormouse_dm events
flush chain inet dormouse_dm events
add rule inet dormouse_dm events ip daddr 10.78.0.0/16 ct event set new,destroy,protoinfo return
add rule inet dormouse_dm events ip6 daddr fd78::/48 ct event set new,destroy,protoinfo return
add rule inet dormouse_dm events ct event set 0x0
add chain inet dormouse_dm ingress { type filter hook prerouting priority raw; policy accept; }
flush chain inet dormouse_dm ingress
add rule inet dormouse_dm ingress iifname "dmp1" notrack accept
add rule inet dormouse_dm ingress iifname "dmt*" iifname . ip saddr @sources_ipv4 accept
add rule inet dormouse_dm ingress iifname "dmt*" iifname . ip6 saddr @sources_ipv6 accept
add rule inet dormouse_dm ingress iifname "dmt*" counter drop
add chain inet dormouse_dm input { type filter hook input priority filter; policy accept; }
flush chain inet dormouse_dm input
add rule inet dormouse_dm input ct state new jump events
add chain inet dormouse_dm forward { type filter hook forward priority filter; policy accept; }
flush chain inet dormouse_dm forward
add rule inet dormouse_dm forward iifname "dmp1" oifname "dmp0" counter drop
add rule inet dormouse_dm forward ct state new jump events
add chain inet dormouse_dm output { type filter hook output priority filter; policy accept; }
flush chain inet dormouse_dm output
add rule inet dormouse_dm output ct state new jump events
add chain inet dormouse_dm outwards { type nat hook postrouting priority srcnat; policy accept; }
flush chain inet dormouse_dm outwards
add rule inet dormouse_dm outwards ip saddr 10.78.0.0/16 ip daddr != 10.78.0.0/16 masquerade
add rule inet dormouse_dm outwards ip6 saddr fd78::/48 ip6 daddr != fd78::/48 masquerade
"#;
        assert_eq!(install(&NetworkConfig::default()), want);
    }

    #[test]
    fn what_the_configuration_leaves_out() {
        let config = NetworkConfig {
            masquerade: false,
            flow_events: FlowEvents::All,
            ..NetworkConfig::default()
        };
        let text = install(&config);
        assert!(!text.contains("masquerade") && !text.contains("0x0"));
        // The chains are emptied all the same: the configuration may have said otherwise before.
        assert!(text.contains("flush chain inet dormouse_dm outwards"));
    }
}

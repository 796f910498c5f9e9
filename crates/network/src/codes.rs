//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Network",
    intro: "",
    codes: &[
        Code::new(
            "NETWORK_CONFIG_INVALID",
            &[Kind::Invalid],
            "a value of `[network]` is out of its range",
            "see [configuration.md](configuration.md)",
        ),
        Code::new(
            "NETWORK_NAMESPACE_UNUSABLE",
            &[Kind::Unavailable],
            "the network namespace cannot be entered",
            "make it, or change `network.namespace`",
        ),
        Code::new(
            "NETWORK_TAP_FAILED",
            &[Kind::Unavailable],
            "a tap could not be made",
            "load the tun module; look at /dev/net/tun",
        ),
        Code::new(
            "NETWORK_DEVICE_IN_THE_WAY",
            &[Kind::Conflict],
            "a device of our name is not ours",
            "remove it, or change `network.device_prefix`",
        ),
        Code::new(
            "NETWORK_TABLE_IN_THE_WAY",
            &[Kind::Conflict],
            "a packet table of our name is not ours",
            "remove it, or change `network.device_prefix`",
        ),
        Code::new(
            "NETWORK_KERNEL_REFUSED",
            &[
                Kind::Denied,
                Kind::Exhausted,
                Kind::Unsupported,
                Kind::Timeout,
                Kind::Unavailable,
            ],
            "the kernel refused an address, a route, a neighbour or a device",
            "read the cause",
        ),
        Code::new(
            "NETWORK_SETTING_REFUSED",
            &[
                Kind::Denied,
                Kind::Exhausted,
                Kind::Unsupported,
                Kind::Timeout,
                Kind::Unavailable,
            ],
            "a setting under /proc/sys could not be written",
            "run as root, with /proc/sys writable",
        ),
        Code::new(
            "NETWORK_RULES_REFUSED",
            &[Kind::Bug],
            "nft refused our rules",
            "report it with the message",
        ),
        Code::new(
            "NETWORK_RULES_PROGRAM_MISSING",
            &[Kind::Unavailable],
            "nft could not be started",
            "install nftables",
        ),
        Code::new(
            "NETWORK_SOURCE_CHECK_STRICT",
            &[Kind::Unsupported],
            "net.ipv4.conf.all.rp_filter is 1 in the host's namespace",
            "set it to 0 or 2, or give `network.namespace`",
        ),
        Code::new(
            "NETWORK_IPV6_OFF",
            &[Kind::Unsupported],
            "IPv6 is off in the namespace",
            "set net.ipv6.conf.default.disable_ipv6 to 0",
        ),
        Code::new(
            "NETWORK_ADDRESS_IN_USE",
            &[Kind::Exists],
            "another link has the address",
            "a leftover: restart the daemon, which sweeps",
        ),
        Code::new(
            "NETWORK_LINK_STATE",
            &[Kind::WrongState],
            "the link is not in a state that allows this",
            "a defect if it lasts: report it",
        ),
        Code::new(
            "NETWORK_NOT_ITS_TAP",
            &[Kind::Invalid],
            "a descriptor is not of the tap of this workload",
            "report it",
        ),
        Code::new(
            "NETWORK_DESCRIPTOR_MISSING",
            &[Kind::WrongState],
            "no descriptor of the tap is held here",
            "stop, then start the instance",
        ),
        Code::new(
            "NETWORK_NOT_DRAINED",
            &[Kind::Timeout],
            "packets were still queued; the sleep is taken back",
            "none: it is tried again",
        ),
        Code::new(
            "NETWORK_IN_FLIGHT_UNKNOWN",
            &[
                Kind::Denied,
                Kind::Exhausted,
                Kind::Unsupported,
                Kind::Timeout,
                Kind::Unavailable,
            ],
            "the kernel's packets in flight could not be waited for; the sleep is taken back",
            "read the cause",
        ),
        Code::new(
            "NETWORK_THREAD_REFUSED",
            &[
                Kind::Denied,
                Kind::Exhausted,
                Kind::Unsupported,
                Kind::Timeout,
                Kind::Unavailable,
            ],
            "a thread could not be started",
            "look at the limits of the daemon",
        ),
        Code::new(
            "NETWORK_SLOW",
            &[Kind::Timeout],
            "the network thread did not answer in time",
            "look at the load of the host",
        ),
        Code::new(
            "NETWORK_WORKER_GONE",
            &[Kind::Bug],
            "the network thread has ended",
            "restart the daemon; report it",
        ),
        Code::new(
            "NETWORK_POOL_EXHAUSTED",
            &[Kind::Exhausted],
            "every address of the pool is taken",
            "remove instances, or enlarge the pool",
        ),
        Code::new(
            "NETWORK_ADDRESS_TAKEN",
            &[Kind::Exists],
            "a recorded address is taken twice",
            "remove one of the instances",
        ),
        Code::new(
            "NETWORK_ADDRESS_FREE",
            &[Kind::NotFound],
            "an address was given back twice",
            "report it",
        ),
        Code::new(
            "NETWORK_ADDRESS_FOREIGN",
            &[Kind::Invalid],
            "addresses that are no place of the pool",
            "configure the pools that they are of",
        ),
    ],
}];

//! 1 to 5: policy and classifier.

use std::net::IpAddr;

use dormouse_model::flow::TcpState;
use dormouse_model::policy::{PolicyError, PolicySetting, RawPolicy};
use dormouse_model::{Protocol, StandbyPolicy, WorkloadView};
use dormouse_standby::{ActiveInbound, CountError, active_inbound_count};

use crate::support::{TIMEOUT, addresses, id, open, tcp, view};

fn raw(idle_timeout: &str, sources: &[&str], ports: &[u32]) -> RawPolicy {
    RawPolicy {
        enabled: true,
        idle_timeout: idle_timeout.to_owned(),
        ignore_sources: sources.iter().map(|text| (*text).to_owned()).collect(),
        ignore_ports: ports.to_vec(),
    }
}

#[test]
fn scenario_01_policy_is_normalised() {
    let sources = [" 192.168.1.1/24 ", "10.0.0.0/8", "", "192.168.1.0/24"];
    let setting = raw("300s", &sources, &[8080, 22, 8080]).normalise().unwrap();
    let policy = setting.enabled().unwrap().to_raw();
    assert_eq!(policy, raw("5m", &["10.0.0.0/8", "192.168.1.0/24"], &[22, 8080]));
    assert_eq!(
        policy.normalise(),
        Ok(setting),
        "normalising again changes nothing"
    );
    let off = RawPolicy {
        enabled: false,
        ..raw("nonsense", &["nonsense"], &[0])
    };
    assert_eq!(
        off.normalise(),
        Ok(PolicySetting::Disabled),
        "off discards the rest"
    );
}

#[test]
fn scenario_02_zero_timeout_and_port_zero_are_refused() {
    assert_eq!(raw("0s", &[], &[]).normalise(), Err(PolicyError::TimeoutZero));
    assert_eq!(
        raw("5m", &[], &[0]).normalise(),
        Err(PolicyError::PortOutOfRange { port: 0 })
    );
}

#[test]
fn scenario_03_only_live_inbound_flows_count() {
    let setting = raw("5m", &["172.16.0.0/12"], &[22]).normalise().unwrap();
    let workload = WorkloadView {
        policy: setting,
        ..view(1)
    };
    let outbound = {
        let mut flow = open(1, 1);
        std::mem::swap(&mut flow.key.source, &mut flow.key.destination);
        flow.responder = flow.key.destination;
        flow
    };
    let mut ignored_source = open(1, 2);
    ignored_source.key.source = [172, 16, 9, 9].into();
    let mut ignored_port = open(1, 3);
    ignored_port.responder_port = 22;
    let mut published = open(1, 4);
    published.key.destination = [198, 51, 100, 1].into();
    let flows = [
        open(1, 10),
        tcp(1, 11, TcpState::SYN_SENT),
        outbound,
        ignored_source,
        ignored_port,
        tcp(1, 12, TcpState::TIME_WAIT),
    ];
    let counted = active_inbound_count(&workload, &flows).unwrap();
    assert_eq!(
        counted,
        ActiveInbound {
            count: 2,
            idle_timeout: TIMEOUT
        }
    );
    // Beyond the original: a published port is a way in, and so is the other family.
    let mut ipv6 = open(1, 5);
    ipv6.key.destination = IpAddr::V6(addresses(1).ipv6);
    ipv6.responder = ipv6.key.destination;
    assert_eq!(
        active_inbound_count(&workload, &[published, ipv6]).unwrap().count,
        2
    );
    let off = WorkloadView {
        policy: PolicySetting::Disabled,
        ..view(1)
    };
    assert_eq!(active_inbound_count(&off, &flows), Ok(ActiveInbound::default()));
}

/// An address that cannot be read cannot be spelled here; the nearest is to have none.
#[test]
fn scenario_04_without_an_address_counting_is_an_error() {
    let workload = WorkloadView {
        addresses: None,
        ..view(1)
    };
    let error = active_inbound_count(&workload, &[open(1, 1)]).unwrap_err();
    assert_eq!(error, CountError::NoAddresses { id: id(1) });
}

#[test]
fn scenario_05_tcp_states_by_the_kernels_numbers() {
    let policy = StandbyPolicy::new(TIMEOUT, Vec::new(), Vec::new()).unwrap();
    for number in 0..=u8::MAX {
        let flow = tcp(1, 1, TcpState(number));
        let dead = [0, 7, 8].contains(&number);
        assert_eq!(flow.holds_awake(flow.responder, &policy), !dead, "state {number}");
    }
    assert_eq!(
        (TcpState::IGNORE, TcpState::RETRANS),
        (TcpState(10), TcpState(11))
    );
    let udp = {
        let mut flow = open(1, 1);
        flow.key.protocol = Protocol::Udp;
        flow.tcp_state = None;
        flow
    };
    assert!(
        udp.holds_awake(udp.responder, &policy),
        "a UDP conversation counts"
    );
}

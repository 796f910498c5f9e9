//! The observer on the real kernel, each test in a network namespace of its own. Needs root, `ip`, `nft`
//! and `conntrack`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dormouse_conntrack::requirements::{EventsSetting, Requirements, Tracking, enable_events};
use dormouse_conntrack::{
    BARRIER_PATIENCE, BarrierError, ListFilter, Observations, Observer, ObserverConfig, ObserverHandle, list,
};
use dormouse_model::{Bytes, Epoch, Flow, FlowKey, Observation, Protocol, SightLoss, TcpState};
use dormouse_sys::netns::Namespace;
use tokio::task::JoinSet;

/// No step of these tests takes a tenth of this, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

const GUEST: &str = "10.9.0.2";
const GUEST_SIX: &str = "fd09::2";

const TRACK: &str = "
table inet dormouse {
  chain forward { type filter hook prerouting priority -150
    ct state new counter
  }
  chain zones { type filter hook output priority -300
    udp dport 5353 ct zone set 7
  }
  chain published { type nat hook output priority -100
    ip daddr 10.9.0.9 tcp dport 80 dnat to 10.9.0.2:3333
  }
}";

/// A namespace with a loopback device that has the guest's addresses.
struct Lab {
    path: PathBuf,
    namespace: Arc<Namespace>,
}

impl Lab {
    /// A lab without tracking, or `None` with the reason printed.
    fn bare(test: &str) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("dormouse-conntrack-{test}-{}", std::process::id()));
        let namespace = match Namespace::create_at(&path) {
            Ok(namespace) => Arc::new(namespace),
            Err(error) => {
                println!("skipped: {test}: {error}");
                return None;
            }
        };
        let lab = Self { path, namespace };
        for program in ["ip", "nft", "conntrack"] {
            if Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_err()
            {
                println!("skipped: {test}: {program} is not installed");
                return None;
            }
        }
        lab.run(&["ip", "link", "set", "lo", "up"]);
        for address in ["10.9.0.1/32", "10.9.0.2/32", "10.9.0.9/32"] {
            lab.run(&["ip", "address", "add", address, "dev", "lo"]);
        }
        lab.run(&["ip", "address", "add", "fd09::2/128", "dev", "lo", "nodad"]);
        Some(lab)
    }

    /// A lab with tracking and events.
    fn tracked(test: &str) -> Option<Self> {
        let lab = Self::bare(test)?;
        enable_events(Some(&lab.namespace)).unwrap();
        lab.nft(TRACK);
        Some(lab)
    }

    fn run(&self, command: &[&str]) {
        let output = self
            .namespace
            .within(|| {
                Command::new(command[0])
                    .args(&command[1..])
                    .stdin(Stdio::null())
                    .output()
            })
            .unwrap()
            .unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn nft(&self, rules: &str) {
        let file = self.path.with_extension("nft");
        std::fs::write(&file, rules).unwrap();
        self.run(&["nft", "-f", file.to_str().unwrap()]);
        std::fs::remove_file(&file).unwrap();
    }

    fn listen(&self, address: &str, port: u16) -> TcpListener {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        self.namespace
            .within(|| TcpListener::bind(address))
            .unwrap()
            .unwrap()
    }

    fn connect(&self, address: &str, port: u16) -> TcpStream {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        self.namespace
            .within(|| TcpStream::connect(address))
            .unwrap()
            .unwrap()
    }

    fn datagrams(&self, address: &str, port: u16) -> UdpSocket {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        self.namespace
            .within(|| UdpSocket::bind(address))
            .unwrap()
            .unwrap()
    }

    fn flush(&self) {
        self.run(&["conntrack", "-F"]);
    }

    fn config(&self) -> ObserverConfig {
        ObserverConfig::standard(Some(Arc::clone(&self.namespace)))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        Namespace::remove(&self.path).unwrap();
    }
}

/// An observer that runs, and all that its consumer was told.
struct Watch {
    handle: ObserverHandle,
    observations: Observations,
    told: Vec<Observation>,
    flows: HashMap<FlowKey, Flow>,
    synced: Option<Epoch>,
    _task: JoinSet<()>,
}

impl Watch {
    fn start(config: ObserverConfig) -> Self {
        let (observer, handle, observations) = Observer::new(config);
        let mut task = JoinSet::new();
        task.spawn(observer.run());
        Self {
            handle,
            observations,
            told: Vec::new(),
            flows: HashMap::new(),
            synced: None,
            _task: task,
        }
    }

    fn learn(&mut self, batch: Vec<Observation>) {
        for observation in batch {
            match observation {
                Observation::SyncBegan { .. } => {
                    self.flows.clear();
                    self.synced = None;
                }
                Observation::FlowListed(flow)
                | Observation::FlowOpened(flow)
                | Observation::FlowChanged(flow) => {
                    self.flows.insert(flow.key, flow);
                }
                Observation::FlowClosed(key) => {
                    self.flows.remove(&key);
                }
                Observation::SyncDone { epoch } => self.synced = Some(epoch),
                Observation::SightLost { .. } => self.synced = None,
            }
            self.told.push(observation);
        }
    }

    /// Takes batches until `seen` holds.
    async fn until(&mut self, what: &str, seen: impl Fn(&Self) -> bool) {
        let wait = async {
            while !seen(self) {
                let batch = self.observations.next().await.unwrap();
                self.learn(batch);
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let last = self.told.len().saturating_sub(20);
            panic!("not seen: {what}; told last: {:#?}", &self.told[last..]);
        }
    }

    async fn until_synced(&mut self) -> Epoch {
        self.until("sync", |watch| watch.synced.is_some()).await;
        self.synced.unwrap()
    }

    /// Everything that happened before now.
    async fn level(&mut self) -> Result<Epoch, BarrierError> {
        let answer = self.handle.barrier(PATIENCE).await;
        while let Some(batch) = self.observations.take() {
            self.learn(batch);
        }
        answer
    }

    fn to(&self, protocol: Protocol, address: &str, port: u16) -> Option<Flow> {
        let address: IpAddr = address.parse().unwrap();
        self.flows
            .values()
            .find(|flow| {
                let key = flow.key;
                key.protocol == protocol && key.destination == address && key.destination_port == port
            })
            .copied()
    }

    fn count(&self, wanted: impl Fn(&Observation) -> bool) -> usize {
        self.told.iter().filter(|&one| wanted(one)).count()
    }
}

fn lost(reason: SightLoss) -> impl Fn(&Observation) -> bool {
    move |one| *one == Observation::SightLost { reason }
}

fn sorted(flows: impl IntoIterator<Item = Flow>) -> Vec<(FlowKey, IpAddr)> {
    let mut keys: Vec<_> = flows.into_iter().map(|flow| (flow.key, flow.responder)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[tokio::test]
async fn connections_and_datagrams_of_both_families_are_seen_from_open_to_close() {
    let Some(lab) = Lab::tracked("events") else { return };
    let mut watch = Watch::start(lab.config());
    assert_eq!(watch.until_synced().await, Epoch(1));
    for address in [GUEST, GUEST_SIX] {
        let listener = lab.listen(address, 3333);
        let client = lab.connect(address, 3333);
        let (server, _) = listener.accept().unwrap();
        watch.level().await.unwrap();
        let flow = watch.to(Protocol::Tcp, address, 3333).unwrap();
        assert_eq!(flow.tcp_state, Some(TcpState::ESTABLISHED), "{address}");
        assert_eq!(flow.key.source_port, client.local_addr().unwrap().port());
        assert_eq!(
            (flow.responder, flow.responder_port),
            (flow.key.destination, 3333)
        );
        drop((client, server));
        let over = |watch: &Watch| {
            watch
                .to(Protocol::Tcp, address, 3333)
                .is_some_and(|flow| !flow.is_live())
        };
        watch.until("the end of the connection", over).await;

        let server = lab.datagrams(address, 4444);
        let client = lab.datagrams(address, 0);
        client.send_to(b"?", (address, 4444)).unwrap();
        watch.level().await.unwrap();
        let flow = watch.to(Protocol::Udp, address, 4444).unwrap();
        assert_eq!(
            (flow.key.source_port, flow.tcp_state),
            (client.local_addr().unwrap().port(), None)
        );
        drop(server);
    }
    assert_eq!(watch.count(|one| matches!(one, Observation::FlowOpened(_))), 4);
    lab.flush();
    watch.level().await.unwrap();
    assert!(watch.flows.is_empty(), "{:?}", watch.flows);
    assert_eq!(watch.count(|one| matches!(one, Observation::FlowClosed(_))), 4);
    assert_eq!(watch.count(|one| matches!(one, Observation::SightLost { .. })), 0);
}

#[tokio::test]
async fn a_published_port_is_answered_by_the_guest_behind_it() {
    let Some(lab) = Lab::tracked("dnat") else { return };
    let mut watch = Watch::start(lab.config());
    watch.until_synced().await;
    let listener = lab.listen(GUEST, 3333);
    let _client = lab.connect("10.9.0.9", 80);
    let _server = listener.accept().unwrap();
    watch.level().await.unwrap();
    let flow = watch.to(Protocol::Tcp, "10.9.0.9", 80).unwrap();
    assert_eq!(
        (flow.responder, flow.responder_port),
        (GUEST.parse().unwrap(), 3333)
    );
    let filter = ListFilter::Responder(GUEST.parse().unwrap());
    let listed = watch.handle.list(filter, PATIENCE).await.unwrap();
    assert_eq!(sorted(listed), sorted([flow]));
}

#[tokio::test]
async fn a_zone_is_part_of_a_flows_identity() {
    let Some(lab) = Lab::tracked("zones") else { return };
    let mut watch = Watch::start(lab.config());
    watch.until_synced().await;
    let _server = lab.datagrams(GUEST, 5353);
    lab.datagrams(GUEST, 0).send_to(b"?", (GUEST, 5353)).unwrap();
    watch.level().await.unwrap();
    assert_eq!(watch.to(Protocol::Udp, GUEST, 5353).unwrap().key.zone, 7);
    let listed = list(Some(&lab.namespace), &ListFilter::All, PATIENCE).unwrap();
    assert!(listed.iter().any(|flow| flow.key.zone == 7), "{listed:?}");
}

#[tokio::test]
async fn a_barrier_comes_after_every_earlier_event() {
    let Some(lab) = Lab::tracked("barrier") else {
        return;
    };
    let mut watch = Watch::start(lab.config());
    let epoch = watch.until_synced().await;
    let _server = lab.datagrams(GUEST, 4444);
    for round in 0..300 {
        let client = lab.datagrams(GUEST, 0);
        client.send_to(b"?", (GUEST, 4444)).unwrap();
        assert_eq!(watch.level().await, Ok(epoch));
        let port = client.local_addr().unwrap().port();
        assert!(
            watch.flows.keys().any(|key| key.source_port == port),
            "round {round}"
        );
    }
    let barriers = (0..100).map(|_| watch.handle.barrier(PATIENCE));
    for answer in join_all(barriers).await {
        assert_eq!(answer, Ok(epoch));
    }
}

async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        for (future, result) in &mut waiting {
            if result.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        if waiting.iter().all(|(_, result)| result.is_some()) {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    })
    .await;
    waiting.into_iter().filter_map(|(_, result)| result).collect()
}

/// The observer runs on this test's only thread: while the test makes flows, nobody reads.
#[tokio::test]
async fn an_overrun_is_told_and_repaired() {
    let Some(lab) = Lab::tracked("overrun") else {
        return;
    };
    let mut watch = Watch::start(ObserverConfig {
        receive_buffer: Bytes(4096),
        ..lab.config()
    });
    let first = watch.until_synced().await;
    let _server = lab.datagrams(GUEST, 4444);
    for round in 1..=20 {
        let sockets: Vec<_> = (0..50).map(|_| lab.datagrams(GUEST, 0)).collect();
        for client in &sockets {
            client.send_to(b"?", (GUEST, 4444)).unwrap();
        }
        watch
            .until("the loss", |watch| watch.count(lost(SightLoss::Overrun)) == round)
            .await;
        watch.until_synced().await;
        watch.level().await.unwrap();
        let listed = list(Some(&lab.namespace), &ListFilter::All, PATIENCE).unwrap();
        assert_eq!(
            sorted(watch.flows.values().copied()),
            sorted(listed),
            "round {round}"
        );
        for client in &sockets {
            let port = client.local_addr().unwrap().port();
            assert!(
                watch.flows.keys().any(|key| key.source_port == port),
                "round {round}"
            );
        }
    }
    assert!(watch.synced.unwrap() > first);
}

#[tokio::test]
async fn a_barrier_in_an_overrun_never_says_level() {
    let Some(lab) = Lab::tracked("void") else { return };
    let mut watch = Watch::start(ObserverConfig {
        receive_buffer: Bytes(4096),
        ..lab.config()
    });
    watch.until_synced().await;
    let _server = lab.datagrams(GUEST, 4444);
    let sockets: Vec<_> = (0..50).map(|_| lab.datagrams(GUEST, 0)).collect();
    for client in &sockets {
        client.send_to(b"?", (GUEST, 4444)).unwrap();
    }
    let answer = watch.handle.barrier(BARRIER_PATIENCE).await;
    assert!(
        matches!(
            answer,
            Err(BarrierError::Blind { .. } | BarrierError::Timeout { .. })
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_slow_consumer_is_told_that_it_missed_something() {
    let Some(lab) = Lab::tracked("slow") else { return };
    let mut watch = Watch::start(ObserverConfig {
        queue_batches_max: 2,
        queue_patience: Duration::from_millis(20),
        ..lab.config()
    });
    watch.until_synced().await;
    let _server = lab.datagrams(GUEST, 4444);
    let mut clients = Vec::new();
    // Each round ends one batch; nobody takes any.
    let filled = async {
        while watch.handle.sight().epoch().is_some() {
            let client = lab.datagrams(GUEST, 0);
            client.send_to(b"?", (GUEST, 4444)).unwrap();
            clients.push(client);
            let _ = watch.handle.barrier(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, filled).await.unwrap();
    let blind = watch.handle.barrier(BARRIER_PATIENCE).await;
    assert_eq!(
        blind,
        Err(BarrierError::Blind {
            reason: Some(SightLoss::ConsumerSlow)
        })
    );
    watch
        .until("the loss", |watch| {
            watch.count(lost(SightLoss::ConsumerSlow)) == 1
        })
        .await;
    watch.until_synced().await;
    watch.level().await.unwrap();
    for client in &clients {
        let port = client.local_addr().unwrap().port();
        assert!(watch.flows.keys().any(|key| key.source_port == port));
    }
}

#[tokio::test]
async fn scenario_28_a_flow_opened_while_nobody_watched_is_seen_at_once_after_the_reconnect() {
    let Some(lab) = Lab::tracked("outage") else { return };
    let mut watch = Watch::start(lab.config());
    watch.until_synced().await;
    drop(watch);
    let listener = lab.listen(GUEST, 3333);
    let client = lab.connect(GUEST, 3333);
    let server = listener.accept().unwrap();
    let mut watch = Watch::start(lab.config());
    watch.until_synced().await;
    let flow = watch.to(Protocol::Tcp, GUEST, 3333).unwrap();
    assert!(
        watch.told.contains(&Observation::FlowListed(flow)),
        "{:?}",
        watch.told
    );
    // It speaks although it is older than its listener.
    drop((client, server));
    let over = |watch: &Watch| {
        watch
            .to(Protocol::Tcp, GUEST, 3333)
            .is_some_and(|flow| !flow.is_live())
    };
    watch.until("the end of the older connection", over).await;
}

#[tokio::test]
async fn an_asked_resync_is_a_new_epoch() {
    let Some(lab) = Lab::tracked("resync") else { return };
    let mut watch = Watch::start(lab.config());
    let first = watch.until_synced().await;
    let _server = lab.datagrams(GUEST, 4444);
    lab.datagrams(GUEST, 0).send_to(b"?", (GUEST, 4444)).unwrap();
    watch.handle.resync();
    watch.handle.resync();
    watch
        .until("a new epoch", |watch| {
            watch.synced.is_some_and(|epoch| epoch > first)
        })
        .await;
    assert!(watch.to(Protocol::Udp, GUEST, 4444).is_some());
    assert_eq!(watch.count(|one| matches!(one, Observation::SightLost { .. })), 0);
}

#[test]
fn listings_are_filtered_by_who_answers() {
    let Some(lab) = Lab::tracked("list") else { return };
    let _servers: Vec<_> = [GUEST, GUEST_SIX, "10.9.0.1"]
        .map(|address| lab.datagrams(address, 4444))
        .into();
    for address in [GUEST, GUEST_SIX, "10.9.0.1"] {
        lab.datagrams(address, 0).send_to(b"?", (address, 4444)).unwrap();
    }
    let responders = |filter: &ListFilter| -> Vec<IpAddr> {
        let listed = list(Some(&lab.namespace), filter, PATIENCE).unwrap();
        let mut addresses: Vec<_> = listed.iter().map(|flow| flow.responder).collect();
        addresses.sort_unstable();
        addresses
    };
    let [four, six]: [IpAddr; 2] = [GUEST, GUEST_SIX].map(|address| address.parse().unwrap());
    assert_eq!(responders(&ListFilter::All).len(), 3);
    assert_eq!(responders(&ListFilter::Responder(four)), [four]);
    assert_eq!(responders(&ListFilter::Responder(six)), [six]);
    assert_eq!(
        responders(&ListFilter::Responder("10.9.0.77".parse().unwrap())),
        [] as [IpAddr; 0]
    );
    assert_eq!(
        responders(&ListFilter::Responders([four, six].into())),
        [four, six]
    );
}

#[test]
fn requirements_are_found_missing_and_met() {
    let Some(lab) = Lab::bare("requirements") else {
        return;
    };
    let before = Requirements::check(Some(&lab.namespace)).unwrap();
    assert_eq!(
        (before.tracking_v4, before.tracking_v6),
        (Tracking::Off, Tracking::Off)
    );
    assert!(!before.is_met());
    lab.nft(TRACK);
    let setting = enable_events(Some(&lab.namespace)).unwrap();
    assert_eq!(setting, before.events);
    let after = Requirements::check(Some(&lab.namespace)).unwrap();
    assert_eq!(
        (after.tracking_v4, after.tracking_v6),
        (Tracking::On, Tracking::On)
    );
    assert_eq!(after.events, EventsSetting::Always);
    assert!(after.is_met() && after.entries_max > 0);
    assert_eq!(
        enable_events(Some(&lab.namespace)).unwrap(),
        EventsSetting::Always
    );
}

//! `test scenarios`: the scenarios of a specification by their numbers. Most are tests of the engine's
//! crate; two take a guest and a real kernel.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse_client::v1::{InstanceState, MemoryPlacement};

use crate::bench;
use crate::build::workspace;
use crate::figures::Figures;
use crate::lab::{Guest, GuestSpec, Lab, Parts, TCP_PORT, ask, tick};
use crate::setup::Need;
use crate::test::{Verdict, cargo_test, not_applicable, scenario_numbers};

/// The only specification with numbered scenarios so far, and how many it has.
const SPEC: &str = "auto-standby";
const LAST: u32 = 52;
/// Those that take a guest.
const ON_A_GUEST: [(u32, &str); 2] = [
    (51, "an open TCP connection keeps it awake"),
    (52, "a flow without replies keeps it awake"),
];

const IDLE: Duration = Duration::from_secs(3);
/// How long it must stay awake.
const STAYS: Duration = Duration::from_secs(5);
/// By when it must sleep once nothing holds it.
const SLEEPS_WITHIN: Duration = Duration::from_secs(45);

/// How one scenario ended.
#[derive(Debug)]
enum Outcome {
    Passed(String),
    Failed(String),
    NotApplicable(String),
    Missing,
}

/// Runs all scenarios of `spec`.
pub(crate) fn run(spec: &str, json: Option<&Path>) -> Result<ExitCode> {
    ensure!(spec == SPEC, "there are scenarios of {SPEC} only");
    let mut outcomes: BTreeMap<u32, Outcome> = (1..=LAST).map(|number| (number, Outcome::Missing)).collect();
    let list = workspace().join("crates/standby/tests/scenarios_not_applicable.txt");
    let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    for (number, why) in not_applicable(&text) {
        outcomes.insert(number, Outcome::NotApplicable(why));
    }
    let (verdicts, _) = cargo_test(Some("scenario_"))?;
    for (name, verdict) in &verdicts.by_name {
        for number in scenario_numbers(name) {
            let outcome = match verdict {
                Verdict::Passed => Outcome::Passed(name.clone()),
                Verdict::Failed => Outcome::Failed(name.clone()),
                Verdict::Skipped => Outcome::Failed(format!("{name} was skipped")),
            };
            // Of several tests with one number the worst counts.
            if !matches!(outcomes.get(&number), Some(Outcome::Failed(_))) {
                outcomes.insert(number, outcome);
            }
        }
    }
    let mut figures = on_a_guest(&mut outcomes)?;
    tell(&outcomes, &mut figures);
    figures.finish(json)
}

fn tell(outcomes: &BTreeMap<u32, Outcome>, figures: &mut Figures) {
    for name in ["passed", "failed", "missing", "not_applicable"] {
        figures.count(name, 0);
    }
    for (number, outcome) in outcomes {
        let what = format!("scenario {number}");
        let (count, text) = match outcome {
            Outcome::Passed(name) => ("passed", format!("passed {name}")),
            Outcome::Failed(why) => ("failed", format!("failed {why}")),
            Outcome::Missing => ("missing", "no test has its number".to_owned()),
            Outcome::NotApplicable(why) => ("not_applicable", format!("not applicable: {why}")),
        };
        println!("{number:3} {text}");
        figures.count(count, 1);
        match outcome {
            Outcome::NotApplicable(_) => {}
            Outcome::Passed(_) => figures.check("A.6", &what, "passed", text.into(), true),
            Outcome::Failed(_) | Outcome::Missing => {
                figures.check("A.6", &what, "passed", text.into(), false);
            }
        }
    }
}

/// Runs those that take a guest; returns the figures, which say how guests ran.
fn on_a_guest(outcomes: &mut BTreeMap<u32, Outcome>) -> Result<Figures> {
    let lab = Lab::start(Parts::ready(Need::Guests)?)?;
    let mut figures = bench::begin("scenarios", &lab)?;
    lab.import_server()?;
    for (number, name) in ON_A_GUEST {
        println!("scenario {number}: {name}");
        let outcome = match number {
            51 => open_connection(&lab),
            _ => without_replies(&lab),
        };
        let outcome = match outcome {
            Ok(()) => Outcome::Passed(format!("on a guest: {name}")),
            Err(error) => Outcome::Failed(format!("on a guest: {name}: {error:#}")),
        };
        outcomes.insert(number, outcome);
    }
    bench::end(lab, &mut figures, "A.6")?;
    Ok(figures)
}

fn guest(lab: &Lab, name: &str) -> Result<Guest> {
    let spec = GuestSpec {
        name,
        image: "bench:latest",
        ram_mib: 256,
        placement: MemoryPlacement::Unspecified,
        idle: Some(IDLE),
    };
    lab.run_server(&spec)
}

/// Fails unless the guest runs for `time` on end.
fn stays_awake(lab: &Lab, guest: &Guest, time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let view = lab.view(guest)?;
        if view.state() != InstanceState::Running {
            let after = begun.elapsed().as_secs_f64();
            bail!("it is {} after {after:.1} s", view.state().as_str_name());
        }
        tick(Duration::from_millis(200));
    }
    Ok(())
}

/// 51: an open connection keeps the guest awake past its idle time; closed, it sleeps.
fn open_connection(lab: &Lab) -> Result<()> {
    let guest = guest(lab, "scenario-51")?;
    let to = guest.at(0, TCP_PORT);
    let stream = lab
        .as_client(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?
        .context("connecting")?;
    stays_awake(lab, &guest, STAYS).context("with an open connection")?;
    drop(stream);
    lab.wait_for(&guest, InstanceState::Standby, SLEEPS_WITHIN)
        .context("after the connection was closed")?;
    lab.delete(&guest)
}

/// 52: replies are dropped, so the flow stays SYN_SENT: the guest stays awake; lifted, it sleeps.
fn without_replies(lab: &Lab) -> Result<()> {
    let guest = guest(lab, "scenario-52")?;
    let [IpAddr::V4(address), _] = guest.addresses else {
        bail!("the guest's first address is not IPv4")
    };
    packet_rules(
        lab,
        &format!(
            "add table inet lab\n\
             add chain inet lab replies {{ type filter hook forward priority -10; }}\n\
             add rule inet lab replies ip saddr {address} tcp sport {TCP_PORT} drop"
        ),
    )?;
    let to = guest.at(0, TCP_PORT);
    let connecting = std::thread::scope(|scope| -> Result<()> {
        let clients = lab.clients()?;
        // SYNs go again after 1, 3, 7 and 15 s: the connection comes about once replies pass.
        let client = scope.spawn(move || clients.within(|| ask(to, b"late", Duration::from_secs(40))));
        let awake = stays_awake(lab, &guest, IDLE + STAYS).context("with replies dropped");
        packet_rules(lab, "delete table inet lab")?;
        awake?;
        match client.join() {
            Ok(answer) => answer?
                .context("the connection after the drop was lifted")
                .map(drop),
            Err(_) => bail!("the client's thread panicked"),
        }
    });
    connecting?;
    lab.wait_for(&guest, InstanceState::Standby, SLEEPS_WITHIN)
        .context("after the drop was lifted")?;
    lab.delete(&guest)
}

/// Gives rules to `nft` in the data plane.
fn packet_rules(lab: &Lab, rules: &str) -> Result<()> {
    let nft = crate::setup::find_program("nft").context("there is no nft")?;
    let path = lab.disk_directory().join("rules.nft");
    fs::write(&path, format!("{rules}\n")).with_context(|| format!("writing {}", path.display()))?;
    let output = lab.in_data_plane(|| {
        Command::new(nft)
            .arg("-f")
            .arg(&path)
            .stdin(Stdio::null())
            .output()
    })?;
    let output = output.context("starting nft")?;
    ensure!(
        output.status.success(),
        "nft {rules:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

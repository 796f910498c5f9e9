//! The tables that people read.
use std::time::Duration;

use comfy_table::{Cell, ContentArrangement, Table, presets};
use dormouse_client::v1;
use dormouse_model::WallTime;

use crate::arguments::Column;
use crate::{json, text};

mod store;

pub(crate) use store::{damaged_records, store_report};

/// Columns of `ps` when nothing else is asked for.
pub(crate) const USUAL: [Column; 6] = [
    Column::Name,
    Column::Image,
    Column::State,
    Column::Ipv4,
    Column::Held,
    Column::Age,
];

/// Columns of `ps -o wide`.
pub(crate) const WIDE: [Column; 14] = [
    Column::Name,
    Column::Id,
    Column::Image,
    Column::State,
    Column::Ipv4,
    Column::Ipv6,
    Column::Cpus,
    Column::Memory,
    Column::Held,
    Column::Pid,
    Column::Wake,
    Column::Standby,
    Column::Age,
    Column::Labels,
];

/// A table without lines: columns two spaces apart, one row a line whatever its width, so that it
/// can be cut by the usual programs.
fn plain(header: Vec<&str>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        // What a guest says must not break the line or the terminal.
        table.add_row(
            row.into_iter()
                .map(|cell| Cell::new(cell.replace(char::is_control, " "))),
        );
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

const fn heading(column: Column) -> &'static str {
    match column {
        Column::Name => "NAME",
        Column::Id => "ID",
        Column::Image => "IMAGE",
        Column::State => "STATE",
        Column::Ipv4 => "IPV4",
        Column::Ipv6 => "IPV6",
        Column::Cpus => "CPUS",
        Column::Memory => "MEMORY",
        Column::Held => "HELD",
        Column::Pid => "PID",
        Column::Wake => "LAST WAKE",
        Column::Standby => "LAST STANDBY",
        Column::Age => "AGE",
        Column::Labels => "LABELS",
    }
}

/// The state with what a person asks next: how long until it sleeps, what keeps it awake, why it
/// failed.
pub(crate) fn state_text(instance: &v1::Instance) -> String {
    let word = text::state(instance.state());
    let detail = match instance.state() {
        v1::InstanceState::Running => instance.standby_status.as_ref().and_then(awake_text),
        v1::InstanceState::Stopped => instance.exit.as_ref().map(exit_text),
        v1::InstanceState::Failed | v1::InstanceState::Starting => {
            Some(instance.state_reason.clone()).filter(|reason| !reason.is_empty())
        }
        v1::InstanceState::Unspecified
        | v1::InstanceState::Initializing
        | v1::InstanceState::Dozing
        | v1::InstanceState::Sleeping
        | v1::InstanceState::Standby
        | v1::InstanceState::Waking
        | v1::InstanceState::Stopping
        | v1::InstanceState::Deleting => None,
    };
    detail.map_or_else(|| word.clone(), |detail| format!("{word} ({detail})"))
}

fn awake_text(status: &v1::StandbyStatus) -> Option<String> {
    if status.active_inbound_count > 0 {
        let plural = if status.active_inbound_count == 1 { "" } else { "s" };
        return Some(format!("{} connection{plural}", status.active_inbound_count));
    }
    let left = text::duration(status.countdown_remaining.as_ref()?);
    Some(format!("sleeps in {}", text::short(left)))
}

fn exit_text(exit: &v1::InstanceExit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => exit.message.clone(),
    }
}

fn age(at: Option<&prost_types::Timestamp>, now: WallTime) -> String {
    at.map_or_else(
        || "-".to_owned(),
        |at| text::short(now.since(text::wall_time(at))),
    )
}

fn cell(instance: &v1::Instance, column: Column, now: WallTime) -> String {
    let addresses = instance.addresses.as_ref();
    match column {
        Column::Name => or_dash(&instance.name),
        Column::Id => instance.id.clone(),
        Column::Image => or_dash(&instance.image),
        Column::State => state_text(instance),
        Column::Ipv4 => or_dash(addresses.map_or("", |a| &a.ipv4)),
        Column::Ipv6 => or_dash(addresses.map_or("", |a| &a.ipv6)),
        Column::Cpus => instance.vcpus.to_string(),
        Column::Memory => text::size(instance.memory_bytes),
        Column::Held => text::size(instance.memory_held_bytes),
        Column::Pid => {
            if instance.pid == 0 {
                "-".to_owned()
            } else {
                instance.pid.to_string()
            }
        }
        Column::Wake => text::millis(instance.last_wake_ms),
        Column::Standby => text::millis(instance.last_standby_ms),
        Column::Age => age(instance.created_at.as_ref(), now),
        Column::Labels => {
            let labels: Vec<String> = instance
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            or_dash(&labels.join(","))
        }
    }
}

/// `ps`.
pub(crate) fn instances(instances: &[v1::Instance], columns: &[Column], now: WallTime) -> String {
    let header = columns.iter().map(|column| heading(*column)).collect();
    let row = |instance| {
        columns
            .iter()
            .map(|column| cell(instance, *column, now))
            .collect()
    };
    plain(header, instances.iter().map(row).collect())
}

/// `image ls`: one row a name.
pub(crate) fn images(images: &[v1::Image], now: WallTime) -> String {
    let mut rows = Vec::new();
    for image in images {
        let nameless = [String::new()];
        let names = if image.names.is_empty() {
            nameless.as_slice()
        } else {
            &image.names
        };
        for name in names {
            rows.push(vec![
                or_dash(name),
                short_digest(&image.digest),
                text::size(image.rootfs_bytes),
                image.used_by.len().to_string(),
                age(image.imported_at.as_ref(), now),
            ]);
        }
    }
    plain(vec!["NAME", "DIGEST", "SIZE", "USED BY", "IMPORTED"], rows)
}

fn short_digest(digest: &str) -> String {
    digest
        .strip_prefix("sha256:")
        .unwrap_or(digest)
        .chars()
        .take(12)
        .collect()
}

/// `status`.
pub(crate) fn statuses(statuses: &[v1::StandbyStatus]) -> String {
    let row = |status: &v1::StandbyStatus| {
        vec![
            or_dash(&status.instance_name),
            or_dash(&status.status),
            or_dash(&status.reason),
            status.active_inbound_count.to_string(),
            status
                .countdown_remaining
                .as_ref()
                .map_or_else(|| "-".to_owned(), |left| text::short(text::duration(left))),
            or_dash(&status.explanation),
        ]
    };
    let header = vec!["NAME", "STATUS", "REASON", "CONNECTIONS", "SLEEPS IN", "WHY"];
    plain(header, statuses.iter().map(row).collect())
}

/// `doctor`.
pub(crate) fn checks(checks: &[v1::Check]) -> String {
    let row = |check: &v1::Check| {
        let word = text::word(check.status().as_str_name(), "CHECK_STATUS_");
        vec![
            check.name.clone(),
            word,
            check.detail.clone(),
            or_dash(&check.advice),
        ]
    };
    plain(
        vec!["CHECK", "STATUS", "FOUND", "ADVICE"],
        checks.iter().map(row).collect(),
    )
}

/// `setup`.
pub(crate) fn changed_settings(changed: &[v1::ChangedSetting]) -> String {
    let row = |setting: &v1::ChangedSetting| {
        vec![
            setting.path.clone(),
            setting.before.to_string(),
            setting.after.to_string(),
        ]
    };
    plain(vec!["SETTING", "WAS", "IS"], changed.iter().map(row).collect())
}

/// `system info`.
pub(crate) fn system_info(info: &v1::SystemInfo, now: WallTime) -> String {
    let counts: Vec<String> = info
        .instances
        .iter()
        .map(|entry| format!("{} {}", entry.count, text::state(entry.state())))
        .collect();
    let uptime = info
        .started_at
        .as_ref()
        .map_or(Duration::ZERO, |at| now.since(text::wall_time(at)));
    let namespace = if info.network_namespace.is_empty() {
        "the daemon's own"
    } else {
        info.network_namespace.as_str()
    };
    let rows = [
        (
            "version",
            format!("{} {}", info.version, info.commit).trim_end().to_owned(),
        ),
        ("up", text::short(uptime)),
        (
            "host",
            format!("{} ({}, {})", info.hostname, info.architecture, info.kernel),
        ),
        ("cpus", info.cpus.to_string()),
        (
            "memory",
            format!(
                "{}, swap {}",
                text::size(info.memory_bytes),
                text::size(info.swap_bytes)
            ),
        ),
        (
            "driver",
            format!("{} {}", info.driver, info.driver_version)
                .trim_end()
                .to_owned(),
        ),
        (
            "accelerator",
            because(&info.accelerator, &info.accelerator_reason),
        ),
        (
            "placement",
            because(&json::placement(info.placement()), &info.placement_reason),
        ),
        ("data directory", info.data_directory.clone()),
        ("run directory", info.run_directory.clone()),
        (
            "network",
            format!(
                "{namespace}; {}, {}",
                or_dash(&info.ipv4_pool),
                or_dash(&info.ipv6_prefix)
            ),
        ),
        ("instances", or_dash(&counts.join(", "))),
        ("memory held", text::size(info.memory_held_bytes)),
    ];
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}"))
        .collect();
    lines.join("\n")
}

fn because(what: &str, reason: &str) -> String {
    if reason.is_empty() {
        or_dash(what)
    } else {
        format!("{} ({reason})", or_dash(what))
    }
}

/// A line of `events`.
pub(crate) fn event(event: &v1::Event) -> String {
    use v1::event::What;
    let at = event
        .at
        .as_ref()
        .map_or_else(|| "-".to_owned(), |at| text::wall_time(at).to_string());
    let what = match &event.what {
        Some(What::Instance(event)) => instance_event(event),
        Some(What::Image(event)) => {
            let change = text::word(event.change().as_str_name(), "IMAGE_CHANGE_");
            let image = event.image.as_ref();
            let name = image.and_then(|image| image.names.first().or(Some(&image.digest)));
            format!("image {} {change}", name.map_or("-", String::as_str))
        }
        Some(What::Gap(gap)) if gap.missed == 0 => "some events were missed".to_owned(),
        Some(What::Gap(gap)) => format!("{} events were missed", gap.missed),
        Some(What::Quarantined(record)) => {
            let (kind, key) = (&record.kind, &record.key);
            format!("{kind} record {key} set aside: {}", record.reason)
        }
        None => "something that this version does not know".to_owned(),
    };
    format!("{at} {}", what.replace(char::is_control, " "))
}

fn instance_event(event: &v1::InstanceEvent) -> String {
    let name = event.instance.as_ref().map_or("-", |instance| &instance.name);
    let cause = if event.cause.is_empty() {
        String::new()
    } else {
        format!(" ({})", event.cause)
    };
    match event.change() {
        v1::InstanceChange::State => {
            let now = event
                .instance
                .as_ref()
                .map_or_else(|| "-".to_owned(), |instance| text::state(instance.state()));
            format!("{name} {} -> {now}{cause}", text::state(event.previous_state()))
        }
        change @ (v1::InstanceChange::Created
        | v1::InstanceChange::Updated
        | v1::InstanceChange::Deleted
        | v1::InstanceChange::Unspecified) => {
            format!(
                "{name} {}{cause}",
                text::word(change.as_str_name(), "INSTANCE_CHANGE_")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn now() -> WallTime {
        WallTime::from_unix_nanos(10_000 * 1_000_000_000)
    }

    fn web() -> v1::Instance {
        v1::Instance {
            id: "01kabcdefghjkmnpqrstvwxyz0".to_owned(),
            name: "web".to_owned(),
            image: "nginx:latest".to_owned(),
            state: v1::InstanceState::Running.into(),
            addresses: Some(v1::InstanceAddresses {
                ipv4: "10.77.0.2".to_owned(),
                ipv6: "fd00::2".to_owned(),
                mac: "02:00:00:00:00:02".to_owned(),
            }),
            vcpus: 1,
            memory_bytes: 256 << 20,
            memory_held_bytes: 81 << 20,
            created_at: at(9_748),
            standby_status: Some(v1::StandbyStatus {
                countdown_remaining: Some(prost_types::Duration {
                    seconds: 252,
                    nanos: 0,
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn asleep() -> v1::Instance {
        v1::Instance {
            name: "api-with-a-long-name".to_owned(),
            state: v1::InstanceState::Standby.into(),
            memory_held_bytes: 0,
            last_wake_ms: Some(53.4),
            labels: [("team".to_owned(), "a".to_owned())].into(),
            ..web()
        }
    }

    #[test]
    fn the_table_of_instances() {
        assert_eq!(
            instances(&[web(), asleep()], &USUAL, now()),
            "\
NAME                  IMAGE         STATE                      IPV4       HELD    AGE
web                   nginx:latest  running (sleeps in 4m12s)  10.77.0.2  81 MiB  4m12s
api-with-a-long-name  nginx:latest  standby                    10.77.0.2  0 B     4m12s"
        );
        assert_eq!(
            instances(
                &[asleep()],
                &[Column::Name, Column::Wake, Column::Pid, Column::Labels],
                now()
            ),
            "NAME                  LAST WAKE  PID  LABELS\napi-with-a-long-name  53 ms      -    team=a"
        );
        assert_eq!(
            instances(&[], &USUAL, now()),
            "NAME  IMAGE  STATE  IPV4  HELD  AGE"
        );
    }

    #[test]
    fn states_say_what_is_asked_next() {
        let with = |change: &dyn Fn(&mut v1::Instance)| {
            let mut instance = web();
            change(&mut instance);
            state_text(&instance)
        };
        assert_eq!(with(&|i| i.standby_status = None), "running");
        assert_eq!(
            with(&|i| {
                i.standby_status = Some(v1::StandbyStatus {
                    active_inbound_count: 1,
                    ..Default::default()
                });
            }),
            "running (1 connection)"
        );
        assert_eq!(
            with(&|i| {
                i.set_state(v1::InstanceState::Stopped);
                i.exit = Some(v1::InstanceExit {
                    code: Some(3),
                    ..Default::default()
                });
            }),
            "stopped (exit 3)"
        );
        assert_eq!(
            with(&|i| {
                i.set_state(v1::InstanceState::Failed);
                i.state_reason = "the process ended: signal 9".to_owned();
            }),
            "failed (the process ended: signal 9)"
        );
    }

    #[test]
    fn what_a_guest_says_stays_on_its_line() {
        let hostile = v1::Instance {
            image: "a\n\x1b[31mb".to_owned(),
            ..web()
        };
        let table = instances(&[hostile], &[Column::Image], now());
        assert_eq!(table, "IMAGE\na  [31mb");
    }

    #[test]
    fn the_table_of_images() {
        let image = v1::Image {
            digest: "sha256:0123456789abcdef".to_owned(),
            names: vec!["web:1".to_owned(), "web:latest".to_owned()],
            rootfs_bytes: 96 << 20,
            imported_at: at(9_940),
            ..Default::default()
        };
        assert_eq!(
            images(&[image], now()),
            "\
NAME        DIGEST        SIZE    USED BY  IMPORTED
web:1       0123456789ab  96 MiB  0        1m
web:latest  0123456789ab  96 MiB  0        1m"
        );
    }

    #[test]
    fn the_table_of_checks() {
        let check = v1::Check {
            name: "kvm".to_owned(),
            status: v1::CheckStatus::Warning.into(),
            detail: "/dev/kvm is missing".to_owned(),
            advice: String::new(),
        };
        assert_eq!(
            checks(&[check]),
            "CHECK  STATUS   FOUND                ADVICE\nkvm    warning  /dev/kvm is missing  -"
        );
    }

    #[test]
    fn events_are_lines() {
        let state = v1::Event {
            cursor: "7".to_owned(),
            at: at(0),
            what: Some(v1::event::What::Instance(v1::InstanceEvent {
                change: v1::InstanceChange::State.into(),
                instance: Some(asleep()),
                previous_state: v1::InstanceState::Sleeping.into(),
                cause: "idle timeout".to_owned(),
            })),
            request_id: String::new(),
        };
        assert_eq!(
            event(&state),
            "1970-01-01T00:00:00.000Z api-with-a-long-name sleeping -> standby (idle timeout)"
        );
        let gap = v1::Event {
            what: Some(v1::event::What::Gap(v1::EventGap { missed: 3 })),
            ..Default::default()
        };
        assert_eq!(event(&gap), "- 3 events were missed");
    }
}

//! Counting what is in the data plane's namespace, by the programs of iproute2 and nftables: readers
//! that share no code with the daemon. To be called inside the namespace.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::thing::{Kind, Thing};

/// Devices, routes, neighbours and packet rules of the calling thread's namespace.
pub(super) fn gather() -> Result<Vec<Thing>> {
    let mut found: Vec<Thing> = ask("ip", &["-j", "link", "show"])?.iter().map(link).collect();
    for family in ["-4", "-6"] {
        let routes = ask("ip", &["-j", family, "route", "show", "table", "main"])?;
        found.extend(routes.iter().filter_map(route));
        let neighbours = ask("ip", &["-j", family, "neigh", "show", "nud", "all"])?;
        found.extend(neighbours.iter().filter_map(neighbour));
    }
    let rules = ask("nft", &["-j", "list", "ruleset"])?;
    for entry in rules
        .first()
        .and_then(|all| all["nftables"].as_array())
        .into_iter()
        .flatten()
    {
        found.extend(rule(entry));
    }
    Ok(found)
}

/// The answer of a program as a list; one object is a list of one.
fn ask(program: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("reading what {program} says"))?;
    Ok(match value {
        Value::Array(list) => list,
        other => vec![other],
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn link(entry: &Value) -> Thing {
    Thing::new(Kind::Link, text(entry, "ifname"))
}

/// Routes that the kernel makes for every device come and go with it.
fn route(entry: &Value) -> Option<Thing> {
    let to = text(entry, "dst");
    if text(entry, "protocol") == "kernel" && to.starts_with("fe80:") {
        return None;
    }
    Some(Thing::new(
        Kind::Route,
        format!("{to} dev {}", text(entry, "dev")),
    ))
}

/// Groups have entries that the kernel makes; and a guest's own link-local address is learned.
fn neighbour(entry: &Value) -> Option<Thing> {
    let states: Vec<&str> = entry["state"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let (to, device) = (text(entry, "dst"), text(entry, "dev"));
    let permanent = states.contains(&"PERMANENT");
    if states.contains(&"NOARP") || (to.starts_with("fe80:") && !permanent) {
        return None;
    }
    let word = if permanent { "permanent" } else { "waiting" };
    Some(Thing::new(Kind::Neighbour, format!("{to} dev {device} {word}")))
}

fn rule(entry: &Value) -> Vec<Thing> {
    let thing = |name: String| Thing::new(Kind::Rule, name);
    let whole = |what: &Value| format!("{} {}", text(what, "family"), text(what, "table"));
    if let Some(table) = entry.get("table") {
        return vec![thing(format!(
            "table {} {}",
            text(table, "family"),
            text(table, "name")
        ))];
    }
    if let Some(chain) = entry.get("chain") {
        return vec![thing(format!("chain {} {}", whole(chain), text(chain, "name")))];
    }
    if let Some(rule) = entry.get("rule") {
        let mut expressions = rule["expr"].clone();
        for expression in expressions.as_array_mut().into_iter().flatten() {
            // How much it counted is nobody's leak.
            if let Some(counter) = expression.get_mut("counter") {
                *counter = Value::Null;
            }
        }
        return vec![thing(format!(
            "{} {} {expressions}",
            whole(rule),
            text(rule, "chain")
        ))];
    }
    if let Some(set) = entry.get("set") {
        let name = format!("set {} {}", whole(set), text(set, "name"));
        let elements = set["elem"].as_array().into_iter().flatten().map(|element| {
            let parts: Vec<&str> = element["concat"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            thing(format!("{} {}", text(set, "name"), parts.join(" ")))
        });
        return std::iter::once(thing(name)).chain(elements).collect();
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_kernel_makes_by_itself_is_passed_over() {
        let kernel = json!({"dst": "fe80::/64", "dev": "dmtx", "protocol": "kernel"});
        assert_eq!(route(&kernel), None);
        let ours = json!({"dst": "10.78.0.2", "dev": "dmp0", "protocol": "109"});
        assert_eq!(route(&ours), Some(Thing::new(Kind::Route, "10.78.0.2 dev dmp0")));
        let group = json!({"dst": "ff02::1", "dev": "dmp0", "state": ["NOARP"]});
        assert_eq!(neighbour(&group), None);
        let knock = json!({"dst": "10.78.0.2", "dev": "dmp0", "state": ["INCOMPLETE"]});
        assert_eq!(neighbour(&knock).unwrap().name, "10.78.0.2 dev dmp0 waiting");
    }

    #[test]
    fn elements_of_sets_and_rules_have_names_without_their_counts() {
        let set = json!({"set": {"family": "inet", "table": "t", "name": "s", "elem": [{"concat": ["dmtx", "10.78.0.2"]}]}});
        let names: Vec<String> = rule(&set).into_iter().map(|thing| thing.name).collect();
        assert_eq!(names, ["set inet t s", "s dmtx 10.78.0.2"]);
        let counted = |packets: u32| {
            rule(&json!({"rule": {"family": "inet", "table": "t", "chain": "c",
            "handle": packets, "expr": [{"counter": {"packets": packets}}, {"drop": null}]}}))
        };
        assert_eq!(counted(1), counted(2));
    }
}

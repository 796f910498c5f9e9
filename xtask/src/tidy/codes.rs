//! Error codes: what a room answers it lists, and what it lists it answers, with the same kind.
//!
//! The lists are the modules `codes` of the rooms; docs/errors.md is written from them. A room answers a code
//! when a string of its code spells it; the command line's are in the list of the client. The kinds of a
//! `Fault` are read from its two `match`es: both name every variant, since neither has a wildcard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{shipped, strings};

/// A room's list, and what its code says.
#[derive(Debug, Default)]
struct Room {
    /// By code, the kinds in the list.
    listed: BTreeMap<String, BTreeSet<String>>,
    /// By code, one place that spells it.
    spelled: BTreeMap<String, String>,
    /// By code, the kinds of the variants that answer it.
    answered: BTreeMap<String, BTreeSet<String>>,
}

/// Compares lists and code.
pub(super) fn check(root: &Path, sources: &[PathBuf], faults: &mut Vec<String>) -> Result<()> {
    let mut rooms: BTreeMap<String, Room> = BTreeMap::new();
    for file in sources {
        let Some((place, code)) = shipped(root, file)? else {
            continue;
        };
        let room = rooms.entry(room_of(&place).to_owned()).or_default();
        if place.ends_with("src/codes.rs") {
            read_list(&code, &place, room, faults);
            continue;
        }
        for name in strings(&code).filter(|text| is_code(text)) {
            room.spelled
                .entry(name.to_owned())
                .or_insert_with(|| place.clone());
        }
        for (code, kinds) in answers(&code) {
            room.answered.entry(code).or_default().extend(kinds);
        }
    }
    compare(&rooms, faults);
    Ok(())
}

/// The room whose list has the codes of a file. Programs cannot be linked, so the client keeps those of the
/// command line.
fn room_of(place: &str) -> &str {
    match place.split('/').nth(1) {
        Some(room) if place.starts_with("crates/") => room,
        Some("dormoused") => "daemon",
        Some(_) | None => "client",
    }
}

/// Several words in capitals. What else looks so is listed here.
fn is_code(text: &str) -> bool {
    const OTHERS: [&str; 5] = ["CARGO_", "DORMOUSE_", "LISTEN_", "LC_", "CLOCK_"];
    text.contains('_')
        && text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && !text.starts_with('_')
        && !text.ends_with('_')
        && text != "E2FSPROGS_FAKE_TIME"
        && !OTHERS.iter().any(|other| text.starts_with(other))
}

fn read_list(code: &str, place: &str, room: &mut Room, faults: &mut Vec<String>) {
    for row in code.split("Code::new(").skip(1) {
        let mut parts = row.split('"');
        let name = parts.nth(1).unwrap_or("");
        let kinds = parts.next().unwrap_or("").split("Kind::").skip(1).map(first_word);
        let kinds = kinds.map(str::to_owned).collect();
        if !is_code(name) {
            faults.push(format!(
                "{place}: {name:?} is not a code: several words in capitals"
            ));
        }
        if room.listed.insert(name.to_owned(), kinds).is_some() {
            faults.push(format!("{place}: {name} is listed twice"));
        }
    }
}

fn compare(rooms: &BTreeMap<String, Room>, faults: &mut Vec<String>) {
    let everywhere: BTreeSet<&String> = rooms.values().flat_map(|room| room.listed.keys()).collect();
    let spelled: BTreeSet<&String> = rooms.values().flat_map(|room| room.spelled.keys()).collect();
    let listings = rooms.values().map(|room| room.listed.len()).sum::<usize>();
    if listings != everywhere.len() {
        faults.push("an error code is listed by two rooms".to_owned());
    }
    for (name, room) in rooms {
        let list = format!("crates/{name}/src/codes.rs");
        for (code, place) in room.spelled.iter().filter(|(code, _)| !everywhere.contains(code)) {
            faults.push(format!("{list}: no row for {code} of {place}"));
        }
        for code in room.listed.keys().filter(|code| !spelled.contains(code)) {
            faults.push(format!("{list}: nothing answers {code}"));
        }
        for (code, kinds) in &room.answered {
            let listed = rooms.values().find_map(|room| room.listed.get(code));
            if listed.is_some_and(|listed| !kinds.is_subset(listed)) {
                faults.push(format!("{list}: {code} is answered as {kinds:?}"));
            }
        }
    }
}

/// By code, the kinds that the `Fault`s of a file answer with it; codes whose kinds are another error's are
/// left out.
fn answers(code: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    for block in code.split("Fault for ").skip(1) {
        let block = block.split("\n}").next().unwrap_or("");
        let body = |name: &str| {
            let start = block.find(name)?;
            block.get(start..)?.split("\n    }").next()
        };
        let (Some(kinds), Some(codes)) = (body("fn kind("), body("fn code(")) else {
            continue;
        };
        let (kinds, codes) = (arms(kinds), arms(codes));
        // Which of several codes goes with which of several kinds, only a reader can say.
        for (variant, codes) in codes.into_iter().filter(|(_, codes)| codes.len() == 1) {
            for code in codes.into_iter().filter(|code| is_code(code)) {
                if let Some(kinds) = kinds.get(&variant).or_else(|| kinds.get("")) {
                    found.push((code, kinds.clone()));
                }
            }
        }
    }
    found
}

/// By variant, the kinds and the strings of its arm; under the empty name those of a body without arms.
fn arms(body: &str) -> BTreeMap<String, BTreeSet<String>> {
    let body = body.split_once('{').map_or(body, |(_, body)| body);
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut variants, mut acting) = (Vec::new(), !body.contains("=>"));
    if acting {
        variants.push(String::new());
    }
    let mut rest = body;
    while let Some(at) = ["Self::", "=>", "Kind::", "\""]
        .iter()
        .filter_map(|mark| rest.find(mark))
        .min()
    {
        let token = rest.get(at..).unwrap_or("");
        let (word, next) = if let Some(after) = token.strip_prefix("Self::") {
            if acting {
                (variants, acting) = (Vec::new(), false);
            }
            variants.push(first_word(after).to_owned());
            (None, after)
        } else if let Some(after) = token.strip_prefix("=>") {
            acting = true;
            (None, after)
        } else if let Some(after) = token.strip_prefix("Kind::") {
            // Not the `ErrorKind` of the standard library.
            let whole = rest
                .get(..at)
                .is_some_and(|before| !before.ends_with(char::is_alphanumeric));
            (Some(first_word(after)).filter(|_| whole), after)
        } else {
            let after = token.get(1..).unwrap_or("");
            let string = after.split('"').next().unwrap_or("");
            (Some(string), after.get(string.len() + 1..).unwrap_or(""))
        };
        if let Some(word) = word.filter(|_| acting) {
            for variant in &variants {
                found.entry(variant.clone()).or_default().insert(word.to_owned());
            }
        }
        rest = next;
    }
    found
}

fn first_word(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    text.get(..end.unwrap_or(text.len())).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: &str = r#"
impl Fault for X {
    fn kind(&self) -> Kind {
        match self {
            Self::A { .. } | Self::B(_) => Kind::Invalid,
            Self::C(cause) => cause.kind(),
            Self::D => match self.0 {
                1 => Kind::Denied,
                _ => Kind::Timeout,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::A { .. } => "X_A",
            Self::B(_) => "X_B",
            Self::C(cause) => cause.code(),
            Self::D => "X_D",
        }
    }
}

impl Fault for Y {
    fn kind(&self) -> Kind {
        Kind::Bug
    }
    fn code(&self) -> &'static str {
        "Y_Y"
    }
}
"#;

    fn compared(list: &str, code: &str) -> Vec<String> {
        let (mut room, mut faults) = (Room::default(), Vec::new());
        read_list(list, "list", &mut room, &mut faults);
        for name in strings(code).filter(|text| is_code(text)) {
            room.spelled.insert(name.to_owned(), "place".to_owned());
        }
        room.answered.extend(answers(code));
        compare(&BTreeMap::from([("x".to_owned(), room)]), &mut faults);
        faults
    }

    #[test]
    fn lists_and_faults_are_compared() {
        let whole = r#"Code::new("X_A", &[Kind::Invalid], "", ""), Code::new("X_B", &[Kind::Invalid], "", ""),
            Code::new("X_D", &[Kind::Denied, Kind::Timeout], "a", "b"), Code::new("Y_Y", &[Kind::Bug], "", "")"#;
        assert_eq!(compared(whole, FAULT), Vec::<String>::new());
        for (was, is, part) in [
            ("X_A", "X_C", "no row for X_A"),
            ("X_A", "X_C", "nothing answers X_C"),
            ("X_A", "X_B", "listed twice"),
            (
                "\"Y_Y\", &[Kind::Bug]",
                "\"Y_Y\", &[Kind::Denied]",
                "Y_Y is answered as {\"Bug\"}",
            ),
            ("Kind::Denied, ", "", "X_D is answered as"),
        ] {
            let faults = compared(&whole.replace(was, is), FAULT);
            assert!(
                faults.iter().any(|fault| fault.contains(part)),
                "{part}: {faults:?}"
            );
        }
    }

    #[test]
    fn codes_are_told_from_what_only_looks_like_them() {
        for (text, want) in [
            ("IMAGE_NOT_FOUND", true),
            ("DORMOUSE_HOST", false),
            ("IMPORT_PHASE_", false),
            ("SIGTERM", false),
        ] {
            assert_eq!(is_code(text), want, "{text}");
        }
    }
}

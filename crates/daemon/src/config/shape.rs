//! Whether what was written has the shape of the configuration: its keys, and of each the kind of value. What
//! reads it afterwards stops at the first problem; a person is told all of them.

use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider, Source};

use super::resolve::Problem;

/// What of `given` is not shaped as `known`, each with where it was written. None of what cannot be read at all.
pub(super) fn problems(given: &Figment, known: &Figment) -> Vec<Problem> {
    let top = |figment: &Figment| figment.data().ok()?.remove(&Profile::Default);
    let mut problems = Vec::new();
    if let (Some(found), Some(known)) = (top(given), top(known)) {
        compare(given, "", &found, &known, &mut problems);
    }
    problems
}

fn compare(given: &Figment, path: &str, found: &Dict, known: &Dict, problems: &mut Vec<Problem>) {
    for (name, value) in found {
        let key = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let what = match (known.get(name), value) {
            (Some(Value::Dict(_, known)), Value::Dict(_, found)) => {
                compare(given, &key, found, known, problems);
                continue;
            }
            (None, _) => {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                format!("is no key: there are {}", names.join(", "))
            }
            (Some(Value::String(..)), Value::Num(..) | Value::Bool(..)) => {
                format!("is {} where text belongs: write it in quotes", kind(value))
            }
            (Some(wanted), found) if kind(wanted) != kind(found) => {
                format!("is {} where {} belongs", kind(found), kind(wanted))
            }
            (Some(_), _) => continue,
        };
        let what = format!("{what} ({})", origin(given, value));
        problems.push(Problem::new(&key, what));
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table of keys",
        Value::Empty(..) => "nothing",
    }
}

/// Where a value was written.
fn origin(given: &Figment, value: &Value) -> String {
    let source = given
        .get_metadata(value.tag())
        .and_then(|metadata| metadata.source.as_ref());
    match source {
        Some(Source::File(path)) => format!("in {}", path.display()),
        // The one layer without a source.
        Some(_) | None => "in the environment".to_owned(),
    }
}

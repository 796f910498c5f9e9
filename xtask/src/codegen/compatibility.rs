//! What a new descriptor of the API would break for clients of the committed one.
//!
//! On the wire a field is its number and its type, an enum value its number, a method its path; in code and in
//! JSON all of them are their names. So nothing of these is removed, renumbered, renamed or given another type.
//! A field goes by reserving its number, in a new version of the package.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

/// The package whose promises are checked.
const PACKAGE: &str = "dormouse.v1";

/// Changes between the descriptor sets in two files that a client of the first would notice.
///
/// # Errors
/// When one cannot be read. No committed one at all breaks nothing.
pub(super) fn broken(committed: &Path, fresh: &Path) -> Result<Vec<String>> {
    if !committed.is_file() {
        return Ok(Vec::new());
    }
    Ok(differences(
        &promises(&read(committed)?),
        &promises(&read(fresh)?),
    ))
}

fn read(path: &Path) -> Result<FileDescriptorSet> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    FileDescriptorSet::decode(bytes.as_slice()).with_context(|| format!("reading {}", path.display()))
}

/// What is there, by where it is; what clients rely on of it.
type Promises = BTreeMap<String, String>;

fn promises(set: &FileDescriptorSet) -> Promises {
    let mut found = Promises::new();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        for message in &file.message_type {
            message_promises(message, "", &mut found);
        }
        for list in &file.enum_type {
            enum_promises(list, "", &mut found);
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |streams: bool| if streams { "stream " } else { "" };
                let shape = format!(
                    "{}{} -> {}{}",
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                );
                found.insert(format!("method {}.{}", service.name(), method.name()), shape);
            }
        }
    }
    found
}

fn message_promises(message: &DescriptorProto, within: &str, found: &mut Promises) {
    let name = format!("{within}{}", message.name());
    found.insert(format!("message {name}"), String::new());
    for field in &message.field {
        let shape = format!(
            "{}, {:?} {:?} {}{}",
            field.name(),
            field.label(),
            field.r#type(),
            field.type_name(),
            if field.proto3_optional() { " optional" } else { "" }
        );
        found.insert(format!("field {} of {name}", field.number()), shape);
    }
    let within = format!("{name}.");
    for inner in &message.nested_type {
        message_promises(inner, &within, found);
    }
    for inner in &message.enum_type {
        enum_promises(inner, &within, found);
    }
}

fn enum_promises(list: &EnumDescriptorProto, within: &str, found: &mut Promises) {
    let name = format!("{within}{}", list.name());
    for value in &list.value {
        found.insert(
            format!("value {} of {name}", value.number()),
            value.name().to_owned(),
        );
    }
}

fn differences(was: &Promises, is: &Promises) -> Vec<String> {
    was.iter()
        .filter_map(|(place, promise)| match is.get(place) {
            None => Some(format!("{place} ({promise}) is gone")),
            Some(now) if now != promise => Some(format!("{place} was {promise}, is {now}")),
            Some(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::{
        FieldDescriptorProto, FileDescriptorProto, MethodDescriptorProto, ServiceDescriptorProto,
    };

    fn set() -> FileDescriptorSet {
        let field = FieldDescriptorProto {
            name: Some("name".to_owned()),
            number: Some(1),
            r#type: Some(9),
            ..Default::default()
        };
        let message = DescriptorProto {
            name: Some("Instance".to_owned()),
            field: vec![field],
            ..Default::default()
        };
        let method = MethodDescriptorProto {
            name: Some("Get".to_owned()),
            output_type: Some("Instance".to_owned()),
            ..Default::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("Service".to_owned()),
            method: vec![method],
            ..Default::default()
        };
        FileDescriptorSet {
            file: vec![FileDescriptorProto {
                package: Some(PACKAGE.to_owned()),
                message_type: vec![message],
                service: vec![service],
                ..Default::default()
            }],
        }
    }

    #[test]
    fn what_clients_rely_on_may_grow_and_not_change() {
        type Change = fn(&mut FileDescriptorProto);
        let was = promises(&set());
        let changes: [(Change, usize); 7] = [
            (|_| {}, 0),
            (
                |file| {
                    let more = FieldDescriptorProto {
                        number: Some(2),
                        ..Default::default()
                    };
                    file.message_type[0].field.push(more);
                },
                0,
            ),
            (|file| file.message_type[0].field[0].number = Some(3), 1),
            (|file| file.message_type[0].field[0].r#type = Some(5), 1),
            (
                |file| file.message_type[0].field[0].name = Some("title".to_owned()),
                1,
            ),
            (|file| file.service[0].method[0].server_streaming = Some(true), 1),
            (|file| file.message_type.clear(), 2),
        ];
        for (number, (change, want)) in changes.into_iter().enumerate() {
            let mut set = set();
            change(&mut set.file[0]);
            assert_eq!(differences(&was, &promises(&set)).len(), want, "change {number}");
        }
    }
}

//! The command line that the QEMU driver writes, read back. Pure. Strict: an option that is not known
//! here is an error, as it would be to QEMU, so that a change of the driver is noticed.

use std::collections::BTreeMap;

/// What the program is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// Tells its version and ends.
    Version,
    /// Beats on the serial line, as the guest of the driver's probe does.
    Probe {
        /// The descriptor of the serial line.
        serial: i32,
    },
    /// A machine.
    Machine(Machine),
}

/// A machine: the numbers of its descriptors, and what else matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) control: i32,
    pub(crate) agent: i32,
    pub(crate) console: Option<i32>,
    pub(crate) tap: Option<i32>,
    pub(crate) ram: i32,
    pub(crate) ram_bytes: usize,
    pub(crate) shared: bool,
    /// The state to load; without one it boots.
    pub(crate) incoming: Option<i32>,
    /// Waits for `cont`.
    pub(crate) paused: bool,
}

/// Options with a value that mean something here, or that are known to mean nothing here.
const WITH_VALUE: &[&str] = &[
    "-name",
    "-display",
    "-machine",
    "-accel",
    "-cpu",
    "-smp",
    "-m",
    "-object",
    "-global",
    "-sandbox",
    "-chardev",
    "-mon",
    "-add-fd",
    "-serial",
    "-blockdev",
    "-device",
    "-netdev",
    "-kernel",
    "-initrd",
    "-append",
    "-incoming",
];
const FLAGS: &[&str] = &["-nodefaults", "-no-user-config", "-no-reboot", "-S"];

/// Reads the arguments, without the program's name.
pub(crate) fn read(words: &[String]) -> Result<Role, String> {
    if words == ["--version"] {
        return Ok(Role::Version);
    }
    let mut values: Vec<(&str, &str)> = Vec::new();
    let mut flags = Vec::new();
    let mut rest = words.iter().map(String::as_str);
    while let Some(word) = rest.next() {
        if FLAGS.contains(&word) {
            flags.push(word);
        } else if WITH_VALUE.contains(&word) {
            let value = rest.next().ok_or_else(|| format!("{word} has no value"))?;
            values.push((word, value));
        } else {
            return Err(format!("invalid option {word}"));
        }
    }
    let of = |name: &'static str| {
        values
            .iter()
            .filter(move |(n, _)| *n == name)
            .map(|(_, value)| *value)
    };
    let chardevs: BTreeMap<&str, &str> = of("-chardev")
        .filter_map(|v| Some((field(v, "id")?, v)))
        .collect();
    let descriptor = |id: &str| -> Result<i32, String> {
        let device = chardevs
            .get(id)
            .ok_or_else(|| format!("there is no chardev {id}"))?;
        number(device, "fd")
    };
    if of("-mon").next().is_none() {
        let serial = of("-serial")
            .next()
            .and_then(|value| value.strip_prefix("chardev:"));
        return Ok(Role::Probe {
            serial: descriptor(serial.unwrap_or("serial"))?,
        });
    }
    let ram = of("-object")
        .find(|value| value.starts_with("memory-backend-file,"))
        .ok_or("there is no memory")?;
    let size = field(ram, "size").and_then(|size| size.strip_suffix('B'));
    let path = field(ram, "mem-path").unwrap_or_default();
    let incoming = of("-incoming").next();
    Ok(Role::Machine(Machine {
        name: of("-name").next().unwrap_or_default().to_owned(),
        control: descriptor("control")?,
        agent: descriptor("agent")?,
        console: of("-add-fd")
            .next()
            .map(|value| number(value, "fd"))
            .transpose()?,
        tap: of("-netdev")
            .next()
            .map(|value| number(value, "fd"))
            .transpose()?,
        ram: numbered(path, "/proc/self/fd/")?,
        ram_bytes: size
            .and_then(|size| size.parse().ok())
            .ok_or("the memory has no size")?,
        shared: field(ram, "share") == Some("on"),
        incoming: incoming.map(|value| numbered(value, "fd:")).transpose()?,
        paused: flags.contains(&"-S"),
    }))
}

/// The value of `name` in `a=b,c=d`.
fn field<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value
        .split(',')
        .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

fn number(value: &str, name: &str) -> Result<i32, String> {
    let text = field(value, name).ok_or_else(|| format!("{value} has no {name}"))?;
    text.parse().map_err(|_| format!("{value}: {name} is no number"))
}

fn numbered(value: &str, prefix: &str) -> Result<i32, String> {
    let number = value.strip_prefix(prefix).and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("{value} is not {prefix} and a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    const COMMON: &str = "-name abc -nodefaults -no-user-config -no-reboot -display none \
        -machine microvm -accel tcg -cpu max -smp 1 -m 1048576B \
        -object memory-backend-file,id=ram,size=1048576B,mem-path=/proc/self/fd/3,share=on \
        -chardev socket,id=control,fd=4,server=on,wait=off -mon chardev=control,mode=control \
        -add-fd fd=6,set=6 -chardev file,id=console,path=/dev/fdset/6,append=on -serial chardev:console \
        -chardev socket,id=agent,fd=5,server=on,wait=off -netdev tap,id=net,fd=7 \
        -device virtio-net-device,netdev=net";

    #[test]
    fn a_launch_and_a_restore_are_read() {
        let machine = Machine {
            name: "abc".into(),
            control: 4,
            agent: 5,
            console: Some(6),
            tap: Some(7),
            ram: 3,
            ram_bytes: 1 << 20,
            shared: true,
            incoming: None,
            paused: false,
        };
        let launch = format!("{COMMON} -kernel /proc/self/fd/8 -append quiet");
        assert_eq!(read(&words(&launch)), Ok(Role::Machine(machine.clone())));
        let restore = format!("{COMMON} -S -global migration.send-configuration=off -incoming fd:9");
        let want = Machine {
            incoming: Some(9),
            paused: true,
            ..machine
        };
        assert_eq!(read(&words(&restore)), Ok(Role::Machine(want)));
    }

    #[test]
    fn the_probe_and_the_version_are_read() {
        assert_eq!(read(&words("--version")), Ok(Role::Version));
        let probe = "-nodefaults -no-user-config -display none -machine microvm -accel kvm -m 16M \
                     -kernel /proc/self/fd/3 -chardev socket,id=serial,fd=4 -serial chardev:serial";
        assert_eq!(read(&words(probe)), Ok(Role::Probe { serial: 4 }));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for wrong in ["-enable-kvm", "-name", "-mon chardev=control", "-incoming fd:x"] {
            assert!(read(&words(wrong)).is_err(), "{wrong}");
        }
    }
}

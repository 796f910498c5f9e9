//! `run` and `create`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use dormouse_client::{Client, v1};
use dormouse_model::spec::Placement;
use dormouse_model::{Bytes, Fault, OnLostMemory};

use super::{logs, typed_duration};
use crate::arguments::{CreateArguments, RunArguments};
use crate::failure::Failure;
use crate::session::{Session, request_id};
use crate::{json, text};

/// The command was ended by a signal: the signal's number is added, as shells do.
const EXIT_SIGNAL_BASE: i32 = 128;

/// Makes and starts an instance; detached: prints its id, else follows its output to its end and
/// exits as it did.
pub(crate) async fn run(session: &Session, arguments: RunArguments) -> Result<ExitCode, Failure> {
    let RunArguments { detach, create } = arguments;
    let remove = create.rm;
    let mut request = request(create, |key| std::env::var(key).ok())?;
    request.start = true;
    // In the foreground the instance must still be there when its exit code is asked for.
    request.auto_remove = remove && detach;
    let client = session.connect().await?;
    let instance = make(session, &client, request).await?;
    if detach {
        print_made(session, &instance)?;
        return Ok(ExitCode::SUCCESS);
    }
    if instance.state() == v1::InstanceState::Failed {
        let reason = instance.state_reason.clone();
        if remove {
            delete(&client, &instance.id).await?;
        }
        return Err(Failure::new(
            "INSTANCE_FAILED",
            format!("{} did not start · {reason}", instance.name),
        ));
    }
    let code = follow(session, &client, &instance).await?;
    if remove {
        delete(&client, &instance.id).await?;
    }
    Ok(code)
}

/// Makes an instance and prints its id.
pub(crate) async fn create(session: &Session, arguments: CreateArguments) -> Result<(), Failure> {
    let mut request = request(arguments, |key| std::env::var(key).ok())?;
    request.start = false;
    let client = session.connect().await?;
    let instance = make(session, &client, request).await?;
    print_made(session, &instance)
}

fn print_made(session: &Session, instance: &v1::Instance) -> Result<(), Failure> {
    if session.json {
        session.document(&json::instance(instance))
    } else {
        session.line(&instance.id)
    }
}

async fn make(
    session: &Session,
    client: &Client,
    request: v1::CreateInstanceRequest,
) -> Result<v1::Instance, Failure> {
    let label = format!(
        "starting {}",
        if request.name.is_empty() {
            &request.image
        } else {
            &request.name
        }
    );
    let mut instances = client.instances();
    let made = session
        .progress
        .during(&label, instances.create_instance(request))
        .await?;
    Ok(made.into_inner())
}

async fn delete(client: &Client, id: &str) -> Result<(), Failure> {
    let request = v1::DeleteInstanceRequest {
        instance: id.to_owned(),
        force: true,
        etag: String::new(),
        request_id: request_id()?,
    };
    client.instances().delete_instance(request).await?;
    Ok(())
}

/// Prints what the instance prints until it ends. The first interrupt stops it, the second leaves
/// it alone.
async fn follow(session: &Session, client: &Client, instance: &v1::Instance) -> Result<ExitCode, Failure> {
    let mut output = std::pin::pin!(logs::stream(
        session,
        client,
        v1::StreamLogsRequest {
            instance: instance.id.clone(),
            follow: true,
            ..Default::default()
        },
    ));
    let mut interrupts = Interrupts::new()?;
    let mut stopping = false;
    loop {
        tokio::select! {
            done = output.as_mut() => {
                done?;
                break;
            }
            () = interrupts.next() => {
                if stopping {
                    session.note("left running");
                    return Ok(ExitCode::from(130));
                }
                stopping = true;
                session.note(&format!("stopping {} (again to leave it)", instance.name));
                let request = v1::StopInstanceRequest {
                    instance: instance.id.clone(),
                    request_id: request_id()?,
                    ..Default::default()
                };
                let mut instances = client.instances();
                tokio::select! {
                    stopped = instances.stop_instance(request) => { stopped?; }
                    () = interrupts.next() => {
                        session.note("left running");
                        return Ok(ExitCode::from(130));
                    }
                }
            }
        }
    }
    let request = v1::GetInstanceRequest {
        instance: instance.id.clone(),
    };
    let ended = client.instances().get_instance(request).await?.into_inner();
    exit_code(&ended)
}

/// SIGINT and SIGTERM, of which both ask for the end.
struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed =
            |error: std::io::Error| Failure::new("CLI_SIGNALS", "listening for signals").because(&error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The exit code that the command's end stands for.
fn exit_code(ended: &v1::Instance) -> Result<ExitCode, Failure> {
    let number = match ended.exit.as_ref().map(|exit| (exit.code, exit.signal)) {
        Some((Some(code), _)) => code,
        Some((None, Some(signal))) => signal.saturating_add(EXIT_SIGNAL_BASE),
        Some((None, None)) | None => {
            let what = format!(
                "{} is {} without an exit code",
                ended.name,
                text::state(ended.state())
            );
            let mut failure = Failure::new("INSTANCE_FAILED", what);
            if !ended.state_reason.is_empty() {
                failure = failure.because(&std::io::Error::other(ended.state_reason.clone()));
            }
            return Err(failure);
        }
    };
    // The kernel keeps the low eight bits, and so do shells.
    Ok(ExitCode::from((number & 0xff).try_into().unwrap_or(u8::MAX)))
}

/// The request that the flags stand for. `variable` looks up this shell's environment.
fn request(
    arguments: CreateArguments,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<v1::CreateInstanceRequest, Failure> {
    let mut environment = BTreeMap::new();
    for path in &arguments.env_file {
        let contents = std::fs::read_to_string(path).map_err(|error| {
            Failure::new("CLI_ENV_FILE", format!("reading {}", path.display())).because(&error)
        })?;
        let lines = contents.lines().map(str::trim_start);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            set_variable(&mut environment, line, &variable)?;
        }
    }
    for text in &arguments.env {
        set_variable(&mut environment, text, &variable)?;
    }
    let placement: Placement = parse(arguments.placement.as_deref().unwrap_or(""))?;
    if arguments.entrypoint.as_deref() == Some("") {
        return Err(Failure::new("CLI_USAGE", "--entrypoint is empty: name a program"));
    }
    Ok(v1::CreateInstanceRequest {
        name: arguments.name.unwrap_or_default(),
        image: arguments.image,
        vcpus: arguments.cpus.unwrap_or(0),
        memory_bytes: size(arguments.memory.as_deref())?,
        disk_bytes: size(arguments.disk.as_deref())?,
        placement: match placement {
            Placement::Auto => v1::MemoryPlacement::Unspecified,
            Placement::Tmpfs => v1::MemoryPlacement::Tmpfs,
            Placement::Spill => v1::MemoryPlacement::Spill,
            Placement::Disk => v1::MemoryPlacement::Disk,
        }
        .into(),
        entrypoint: arguments.entrypoint.into_iter().collect(),
        command: arguments.command,
        environment,
        working_directory: arguments.workdir.unwrap_or_default(),
        user: arguments.user.unwrap_or_default(),
        labels: arguments.label.iter().map(|text| label(text)).collect(),
        standby: arguments.idle_timeout.map(|idle_timeout| v1::StandbyPolicy {
            enabled: true,
            idle_timeout,
            ignore_sources: arguments.ignore_source,
            ignore_ports: arguments.ignore_port,
        }),
        stop_timeout: match arguments.stop_timeout.as_deref() {
            Some(text) => Some(text::api_duration(typed_duration(text)?)),
            None => None,
        },
        start: false,
        auto_remove: arguments.rm,
        on_lost_memory: on_lost_memory(arguments.on_lost_memory.as_deref())?.into(),
        request_id: request_id()?,
    })
}

/// What becomes of an instance whose memory is lost; the daemon's choice when nothing is said.
fn on_lost_memory(text: Option<&str>) -> Result<v1::OnLostMemory, Failure> {
    let Some(text) = text else {
        return Ok(v1::OnLostMemory::Unspecified);
    };
    Ok(match parse(text)? {
        OnLostMemory::StayStopped => v1::OnLostMemory::StayStopped,
        OnLostMemory::ColdBoot => v1::OnLostMemory::ColdBoot,
    })
}

fn parse<T>(text: &str) -> Result<T, Failure>
where
    T: std::str::FromStr,
    T::Err: Fault,
{
    text.parse().map_err(|error| Failure::input(&error))
}

/// A size in bytes; 0, which is the daemon's default, when none was given.
fn size(text: Option<&str>) -> Result<u64, Failure> {
    let Some(text) = text else { return Ok(0) };
    let size: Bytes = parse(text)?;
    if size.0 == 0 {
        return Err(Failure::new(
            "SIZE_INVALID",
            format!("{text:?} is no size to run with"),
        ));
    }
    Ok(size.0)
}

/// `KEY=VALUE`, or `KEY` for this shell's value; an unset one is left out, as docker does.
fn set_variable(
    environment: &mut BTreeMap<String, String>,
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), Failure> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text.trim_end(), variable(text.trim_end())),
    };
    if key.is_empty() {
        return Err(Failure::new(
            "CLI_USAGE",
            format!("{text:?} is no variable: write KEY=VALUE"),
        ));
    }
    if let Some(value) = value {
        environment.insert(key.to_owned(), value);
    }
    Ok(())
}

/// `KEY=VALUE`, or `KEY` with an empty value.
pub(super) fn label(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Verb};
    use clap::Parser as _;

    fn asked(line: &str) -> Result<v1::CreateInstanceRequest, String> {
        let words = ["dormouse", "create"].into_iter().chain(line.split_whitespace());
        let Ok(Arguments {
            verb: Verb::Create(arguments),
            ..
        }) = Arguments::try_parse_from(words)
        else {
            panic!("{line} does not parse")
        };
        let shell = |key: &str| (key == "HERE").then(|| "from the shell".to_owned());
        request(arguments, shell).map_err(|failure| failure.to_string())
    }

    #[test]
    fn flags_become_a_request() {
        let got = asked(
            "--name a -m 512M --cpus 2 --disk 1G --placement disk -e A=1=2 -e HERE -e ABSENT -l team=x -l solo \
             -w /srv -u 7:8 --entrypoint /bin/sh --rm --idle-timeout 5m --ignore-source 10.0.0.0/8 \
             --ignore-port 22 --stop-timeout 1500ms --on-lost-memory cold-boot web -c true",
        )
        .unwrap();
        let want = v1::CreateInstanceRequest {
            name: "a".to_owned(),
            image: "web".to_owned(),
            vcpus: 2,
            memory_bytes: 512 << 20,
            disk_bytes: 1 << 30,
            placement: v1::MemoryPlacement::Disk.into(),
            entrypoint: vec!["/bin/sh".to_owned()],
            command: vec!["-c".to_owned(), "true".to_owned()],
            environment: [("A", "1=2"), ("HERE", "from the shell")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            working_directory: "/srv".to_owned(),
            user: "7:8".to_owned(),
            labels: [("team", "x"), ("solo", "")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            standby: Some(v1::StandbyPolicy {
                enabled: true,
                idle_timeout: "5m".to_owned(),
                ignore_sources: vec!["10.0.0.0/8".to_owned()],
                ignore_ports: vec![22],
            }),
            stop_timeout: Some(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            start: false,
            auto_remove: true,
            on_lost_memory: v1::OnLostMemory::ColdBoot.into(),
            request_id: got.request_id.clone(),
        };
        assert_eq!(got, want);
        assert_eq!(got.request_id.len(), 32);
    }

    #[test]
    fn an_image_alone_leaves_all_else_to_the_daemon() {
        let got = asked("web").unwrap();
        let want = v1::CreateInstanceRequest {
            image: "web".to_owned(),
            request_id: got.request_id.clone(),
            ..Default::default()
        };
        assert_eq!(got, want);
    }

    #[test]
    fn wrong_flags_say_what_is_wrong() {
        for (line, code) in [
            ("-m lots web", "error[SIZE_INVALID]"),
            ("-m 0 web", "error[SIZE_INVALID]"),
            ("--placement moon web", "error[SPEC_INVALID]"),
            ("--on-lost-memory maybe web", "error[SPEC_INVALID]"),
            ("--stop-timeout soon web", "error[DURATION_INVALID]"),
            ("-e =x web", "error[CLI_USAGE]"),
            ("--env-file /no/such/file web", "error[CLI_ENV_FILE]"),
        ] {
            let error = asked(line).unwrap_err();
            assert!(error.starts_with(code), "{line}: {error}");
        }
    }

    #[test]
    fn environment_files_have_comments() {
        let file = std::env::temp_dir().join(format!("dormouse-env-{}", std::process::id()));
        std::fs::write(&file, "# comment\n\nA=1\n  B=two words\nHERE\n").unwrap();
        let got = asked(&format!("--env-file {} -e A=2 web", file.display()));
        std::fs::remove_file(&file).unwrap();
        let environment = got.unwrap().environment;
        let want = [("A", "2"), ("B", "two words"), ("HERE", "from the shell")];
        assert_eq!(
            environment,
            want.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
        );
    }

    #[test]
    fn ends_become_exit_codes() {
        let ended = |code, signal| v1::Instance {
            exit: Some(v1::InstanceExit {
                code,
                signal,
                ..Default::default()
            }),
            ..Default::default()
        };
        for (code, signal, want) in [
            (Some(0), None, 0),
            (Some(3), None, 3),
            (Some(127), None, 127),
            (None, Some(9), 137),
            (Some(256), None, 0),
        ] {
            assert_eq!(exit_code(&ended(code, signal)).unwrap(), ExitCode::from(want));
        }
        assert!(exit_code(&v1::Instance::default()).is_err());
    }
}

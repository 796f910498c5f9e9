//! What may be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Instances that sleep when nobody talks to them and wake on the first packet.
#[derive(Debug, Parser)]
#[command(
    name = "dormouse",
    version,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where the daemon listens: unix:///PATH [default: $DORMOUSE_HOST, else
    /// unix:///run/dormouse/dormoused.sock].
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// Print JSON: one document, or one a line for streams and for many names.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How to show what takes longer than a second.
    #[arg(long, global = true, value_enum, default_value_t = ProgressMode::Auto, value_name = "MODE")]
    pub(crate) progress: ProgressMode,
    /// Also print the daemon's id of a request that failed.
    #[arg(long, global = true)]
    pub(crate) verbose: bool,
}

/// How progress is shown, always on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A line that moves on a terminal, else plain.
    Auto,
    /// One line a phase.
    Plain,
    /// One JSON object a line, at most one a second.
    Json,
    /// Nothing.
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make an instance from an image and start it.
    Run(RunArguments),
    /// Make an instance without starting it.
    Create(CreateArguments),
    /// List instances: those that are alive, sleepers included.
    #[command(visible_alias = "ls")]
    Ps(PsArguments),
    /// Show all that is known of an instance, as JSON.
    Inspect(Names),
    /// Print what an instance printed.
    Logs(LogsArguments),
    /// Start stopped instances.
    Start(Names),
    /// End instances; their disks are kept.
    Stop(StopArguments),
    /// Put instances to sleep. `standby status NAME` and `standby hold NAME` are `status` and `hold`.
    #[command(visible_aliases = ["sleep", "suspend", "pause"])]
    Standby(StandbyArguments),
    /// Wake sleeping instances.
    #[command(visible_aliases = ["restore", "resume", "unpause"])]
    Wake(Names),
    /// Say why an instance is awake or asleep, and when it will sleep.
    Status(StatusArguments),
    /// Keep an instance awake for a while.
    Hold(HoldArguments),
    /// Wait until an instance is in a state.
    Wait(WaitArguments),
    /// Remove instances.
    #[command(visible_alias = "delete")]
    Rm(RmArguments),
    /// Import, list and remove images.
    #[command(subcommand)]
    Image(ImageVerb),
    /// List images; the same as `image ls`.
    Images(ImageListArguments),
    /// Print what happens as it happens.
    Events(EventsArguments),
    /// Look at the daemon and its host.
    #[command(subcommand)]
    System(SystemVerb),
    /// Check, copy and tidy the daemon's records.
    #[command(subcommand)]
    Store(StoreVerb),
    /// Say what this host can do, and why not.
    Doctor,
    /// Raise the host's limits for many sleepers, saying what changes; doctor says whether that is needed.
    Setup(SetupArguments),
    /// Print the versions of this program and of the daemon.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct SetupArguments {
    /// For so many sleepers [default: as many as the daemon is configured for].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "undo")]
    pub(crate) sleepers: Option<u32>,
    /// Put back what setup changed, as far as nobody else changed it since.
    #[arg(long)]
    pub(crate) undo: bool,
}

/// One or more instances.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Name, id or unique prefix of an id.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// Name; chosen by the daemon when not given.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Memory, such as 512M.
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Processors.
    #[arg(long, value_name = "COUNT")]
    pub(crate) cpus: Option<u32>,
    /// Size of the writable disk, such as 4G.
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<String>,
    /// Where memory lives: auto, tmpfs, spill or disk.
    #[arg(long, value_name = "PLACE")]
    pub(crate) placement: Option<String>,
    /// When its memory is lost: stay-stopped, or cold-boot on the next wake.
    #[arg(long, value_name = "POLICY")]
    pub(crate) on_lost_memory: Option<String>,
    /// Environment: `KEY=VALUE`, or `KEY` to pass on this shell's.
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// File of environment, one `KEY[=VALUE]` a line; `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Label: `KEY[=VALUE]`.
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Working directory.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// User, with an optional group after a colon.
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Program to run in place of the image's.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Remove it once it has stopped.
    #[arg(long)]
    pub(crate) rm: bool,
    /// Sleep after this long without a connection, such as 5m. Without it, it never sleeps by
    /// itself.
    #[arg(long, value_name = "DURATION")]
    pub(crate) idle_timeout: Option<String>,
    /// Prefix whose connections do not keep it awake, such as 10.0.0.0/8.
    #[arg(long, value_name = "PREFIX", requires = "idle_timeout")]
    pub(crate) ignore_source: Vec<String>,
    /// Port whose connections do not keep it awake.
    #[arg(long, value_name = "PORT", requires = "idle_timeout")]
    pub(crate) ignore_port: Vec<u32>,
    /// How long a stop waits before it kills.
    #[arg(long, value_name = "DURATION")]
    pub(crate) stop_timeout: Option<String>,
    /// Name or digest of an imported image.
    pub(crate) image: String,
    /// Command and arguments, in place of the image's.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Print the id and return once it runs, in place of following its output.
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) create: CreateArguments,
}

#[derive(Debug, Args)]
pub(crate) struct PsArguments {
    /// Also those that are stopped or failed.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print ids only.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// `state=STATE,…`, `label=KEY[=VALUE]` or `name=PART`; all that are given must hold.
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// `wide` for all columns.
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "columns")]
    pub(crate) output: Option<OutputWidth>,
    /// Columns in order.
    #[arg(long, value_delimiter = ',', value_enum, value_name = "COLUMN,…")]
    pub(crate) columns: Vec<Column>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputWidth {
    /// All columns.
    Wide,
}

/// Columns of `ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Column {
    Name,
    Id,
    Image,
    State,
    Ipv4,
    Ipv6,
    Cpus,
    Memory,
    Held,
    Pid,
    Wake,
    Standby,
    Age,
    Labels,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    /// Go on with what will be printed.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin with this many lines from the end.
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) tail: Option<u32>,
    /// Which log.
    #[arg(long, value_enum, default_value_t = Source::App)]
    pub(crate) source: Source,
    /// Name, id or unique prefix of an id.
    pub(crate) name: String,
}

/// Which of an instance's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// What the command printed.
    App,
    /// What the guest's kernel and agent printed.
    Console,
    /// What the virtual machine monitor printed.
    Vmm,
}

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// How long to wait before killing, such as 10s.
    #[arg(short, long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    #[command(flatten)]
    pub(crate) names: Names,
}

#[derive(Debug, Args)]
pub(crate) struct StandbyArguments {
    /// Give up when traffic comes before the sleep is complete.
    #[arg(long = "yield")]
    pub(crate) yield_to_traffic: bool,
    #[command(flatten)]
    pub(crate) names: Names,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Name, id or unique prefix of an id; all when not given.
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct HoldArguments {
    /// Name, id or unique prefix of an id.
    pub(crate) name: String,
    /// For how long, such as 10m; the policy's idle timeout when not given.
    pub(crate) duration: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArguments {
    /// Name, id or unique prefix of an id.
    pub(crate) name: String,
    /// asleep, awake, ready, deleted, or any state; several with commas.
    #[arg(
        long = "for",
        value_name = "STATE,…",
        value_delimiter = ',',
        default_value = "ready"
    )]
    pub(crate) wanted: Vec<String>,
    /// How long to wait, such as 30s; without it, for ever.
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArguments {
    /// Also when not stopped.
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) names: Names,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Import an OCI archive or layout directory.
    Import(ImportArguments),
    /// List images.
    #[command(visible_alias = "list")]
    Ls(ImageListArguments),
    /// Show all that is known of an image, as JSON.
    Inspect(ImageNames),
    /// Remove images.
    Rm(ImageNames),
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// Archive or directory, on the daemon's host.
    pub(crate) path: PathBuf,
    /// Name to give it, such as web:latest; the archive's own when not given.
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageListArguments {
    /// Print digests only.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// A part of the name.
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageNames {
    /// Name, digest or unique prefix of a digest.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArguments {
    /// Only of this instance.
    pub(crate) name: Option<String>,
    /// Begin after this cursor, as `--json` prints them.
    #[arg(long, value_name = "CURSOR")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SystemVerb {
    /// What the daemon is and what it uses.
    Info,
    /// The same as `dormouse doctor`.
    Doctor,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreVerb {
    /// Read every record and say what is wrong. Exits with 1 when something is.
    Check(StoreCheckArguments),
    /// Copy all records to a new file while the daemon serves, and check the copy.
    Backup(StoreBackupArguments),
    /// Damaged records that were set aside.
    #[command(subcommand)]
    Quarantine(QuarantineVerb),
}

#[derive(Debug, Args)]
pub(crate) struct StoreCheckArguments {
    /// A store that no daemon has open, or a backup; without it the running daemon checks its own.
    #[arg(long, value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StoreBackupArguments {
    /// The new file, on the daemon's host; there must be nothing.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineVerb {
    /// List them.
    Ls,
    /// Remove one for good.
    Rm(QuarantineRmArguments),
}

#[derive(Debug, Args)]
pub(crate) struct QuarantineRmArguments {
    /// Its kind, as `ls` prints it.
    pub(crate) kind: String,
    /// Its key, as `ls` prints it.
    pub(crate) key: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Verb, clap::error::ErrorKind> {
        let words = std::iter::once("dormouse").chain(line.split_whitespace());
        Arguments::try_parse_from(words)
            .map(|arguments| arguments.verb)
            .map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_may_be_typed() {
        use clap::error::ErrorKind as E;
        let table: &[(&str, Option<E>)] = &[
            ("run web", None),
            (
                "run -d --name a --memory 512M --cpus 2 --disk 1G -e A=1 -e B -l k=v -w / -u 1:1 web sh -c true",
                None,
            ),
            (
                "run --idle-timeout 5m --ignore-source 10.0.0.0/8 --ignore-port 22 --ignore-port 23 web",
                None,
            ),
            ("run --ignore-port 22 web", Some(E::MissingRequiredArgument)),
            ("run", Some(E::MissingRequiredArgument)),
            ("run --no-such web", Some(E::UnknownArgument)),
            ("create web", None),
            ("ps", None),
            ("ps -aq --filter state=running --filter label=a --json", None),
            ("ps --columns name,state", None),
            ("ps --columns name,nothing", Some(E::InvalidValue)),
            ("ps -o wide --columns name", Some(E::ArgumentConflict)),
            ("logs -f -n 10 web", None),
            ("logs --source vmm web", None),
            ("logs", Some(E::MissingRequiredArgument)),
            ("stop -t 3s a b", None),
            ("start a b", None),
            ("standby a", None),
            ("sleep --yield a", None),
            ("suspend a", None),
            ("pause a", None),
            ("standby status a", None),
            ("wake a", None),
            ("restore a", None),
            ("resume a", None),
            ("unpause a", None),
            ("status", None),
            ("hold a 10m", None),
            ("wait a --for asleep,deleted --timeout 3s", None),
            ("rm -f a b", None),
            ("rm", Some(E::MissingRequiredArgument)),
            ("image import /x --name web:latest", None),
            ("image ls -q", None),
            ("images", None),
            ("events web --after 7", None),
            ("system info", None),
            ("doctor --json", None),
            ("store check", None),
            ("store check --path /x --json", None),
            ("store backup /x", None),
            ("store backup", Some(E::MissingRequiredArgument)),
            ("store quarantine ls", None),
            ("store quarantine rm instance abc", None),
            ("store quarantine rm instance", Some(E::MissingRequiredArgument)),
            ("setup", None),
            ("setup --sleepers 20000 --json", None),
            ("setup --undo", None),
            ("setup --undo --sleepers 5", Some(E::ArgumentConflict)),
            ("version", None),
            ("slep a", Some(E::InvalidSubcommand)),
            ("", Some(E::DisplayHelpOnMissingArgumentOrSubcommand)),
            ("--help", Some(E::DisplayHelp)),
            ("--version", Some(E::DisplayVersion)),
        ];
        for (line, want) in table {
            assert_eq!(parse(line).err(), *want, "{line:?}");
        }
    }

    #[test]
    fn what_follows_the_image_is_the_commands() {
        let Ok(Verb::Run(run)) = parse("run -d web sh -c true --memory") else {
            panic!("not a run")
        };
        assert!(run.detach);
        assert_eq!(run.create.memory, None);
        assert_eq!(run.create.command, ["sh", "-c", "true", "--memory"]);
    }
}

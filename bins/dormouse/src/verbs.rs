//! The verbs, one file a group.

mod create;
mod events;
mod image;
mod lifecycle;
mod list;
mod logs;
mod standby;
mod store;
mod system;
mod wait;

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dormouse_model::WallTime;
use dormouse_model::time::parse_duration;

use crate::arguments::{ImageVerb, QuarantineVerb, StoreVerb, SystemVerb, Verb};
use crate::failure::Failure;
use crate::session::Session;

/// Most entries of a page that lists ask for.
const PAGE_SIZE: u32 = 500;

/// Runs the verb and gives the exit code.
pub(crate) async fn dispatch(session: &Session, verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Run(arguments) => return create::run(session, arguments).await,
        Verb::Create(arguments) => create::create(session, arguments).await?,
        Verb::Ps(arguments) => list::ps(session, arguments).await?,
        Verb::Inspect(names) => list::inspect(session, names).await?,
        Verb::Logs(arguments) => logs::logs(session, arguments).await?,
        Verb::Start(names) => return lifecycle::start(session, names).await,
        Verb::Stop(arguments) => return lifecycle::stop(session, arguments).await,
        Verb::Standby(arguments) => return standby::standby(session, arguments).await,
        Verb::Wake(names) => return lifecycle::wake(session, names).await,
        Verb::Status(arguments) => standby::status(session, arguments.name).await?,
        Verb::Hold(arguments) => standby::hold(session, arguments).await?,
        Verb::Wait(arguments) => wait::wait(session, arguments).await?,
        Verb::Rm(arguments) => return lifecycle::rm(session, arguments).await,
        Verb::Image(ImageVerb::Import(arguments)) => image::import(session, arguments).await?,
        Verb::Image(ImageVerb::Ls(arguments)) | Verb::Images(arguments) => {
            image::ls(session, arguments).await?;
        }
        Verb::Image(ImageVerb::Inspect(names)) => image::inspect(session, names).await?,
        Verb::Image(ImageVerb::Rm(names)) => return image::rm(session, names).await,
        Verb::Events(arguments) => events::events(session, arguments).await?,
        Verb::System(SystemVerb::Info) => system::info(session).await?,
        Verb::Doctor | Verb::System(SystemVerb::Doctor) => return system::doctor(session).await,
        Verb::Store(StoreVerb::Check(arguments)) => return store::check(session, arguments).await,
        Verb::Store(StoreVerb::Backup(arguments)) => store::backup(session, arguments).await?,
        Verb::Store(StoreVerb::Quarantine(QuarantineVerb::Ls)) => store::quarantine_ls(session).await?,
        Verb::Store(StoreVerb::Quarantine(QuarantineVerb::Rm(arguments))) => {
            store::quarantine_rm(session, arguments).await?;
        }
        Verb::Setup(arguments) => system::setup(session, &arguments).await?,
        Verb::Version => system::version(session).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The time, for ages in tables.
fn now() -> WallTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    WallTime::from_unix_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A duration that was typed.
fn typed_duration(text: &str) -> Result<Duration, Failure> {
    parse_duration(text).map_err(|error| Failure::input(&error))
}

/// Does `act` to each name in order. A failure is printed and does not keep the others from it; the
/// exit code is that of the last failure.
async fn each<F>(session: &Session, names: Vec<String>, mut act: impl FnMut(String) -> F) -> ExitCode
where
    F: Future<Output = Result<(), Failure>>,
{
    let mut code = ExitCode::SUCCESS;
    for name in names {
        if let Err(failure) = act(name).await {
            code = failure.report(session.json, session.verbose);
        }
    }
    code
}

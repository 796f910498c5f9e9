//! The data plane: addresses on links, taps, routes, and where a sleeper's packets wait.
//!
//! Every workload has two addresses, alone on their prefixes, and one [`Link`]. While it is awake
//! its addresses are routed to its own tap. While it is not, they are routed to **one parking
//! device for all**: `p0`, an end of a veth pair whose ends are both in the data plane's network
//! namespace. `p0` never finds a neighbour, so packets wait in the kernel's neighbour queue, and
//! the kernel's solicitation to user space is the **knock**.
//!
//! ```text
//!                        routes, by metric (lower wins)
//!                       ┌── 10:   tap    (exists only while open)
//!  client ──▶ forward ──┤                               ┌───────────┐   VMM
//!             or output └── 2048: p0     (always)       │    tap    │──▶ guest
//!                              │                        └───────────┘
//!              no neighbour:   │    released: p1's MAC        ▲
//!              waits, knocks   └──▶ p0 ═══ p1 ── routed again ┘
//!                                        (not tracked a second time)
//! ```
//!
//! What waits on `p0` needs no process of ours: it survives the daemon and the VMM. A tap that
//! vanishes, for whatever reason, takes its route along, and packets wait again.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the configuration and its checks, names of devices |
//! | [`pool`] | addresses and MACs (pure) |
//! | [`link`] | the states of a link and what each step does (pure) |
//! | [`plane`] | [`DataPlane`], [`Link`]: the asynchronous face |
//! | [`adoption`] | taking over links after a restart, sweeping what nobody owns |
//! | [`knock`] | the stream of knocks |
//! | [`limits`] | limits of the host that many sleepers need raised |
//! | [`codes`] | the codes of its errors, with meaning and advice |
//! | `rules` | the packet rules as text (pure) |
//! | `registry` | all links |
//! | `request`, `netlink` | netlink messages (pure), and the socket that carries them |
//! | `kernel`, `setup`, `worker` | deeds, on one thread inside the namespace |
//! | `reaper` | deleting taps, on another |

pub mod adoption;
pub mod codes;
pub mod config;
pub mod error;
mod kernel;
pub mod knock;
pub mod limits;
pub mod link;
mod netlink;
pub mod plane;
pub mod pool;
mod reaper;
mod registry;
mod request;
mod rules;
mod setup;
mod sources;
mod worker;

pub use adoption::{Adopted, Expected, Found, Swept};
pub use config::{ConfigError, FlowEvents, NetworkConfig};
pub use error::NetworkError;
pub use kernel::LinkCounters;
pub use knock::{Knock, KnockStream};
pub use link::LinkState;
pub use plane::{DataPlane, Link, PlaneTask};
pub use pool::{AddressPool, PoolError};

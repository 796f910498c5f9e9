//! The nouns of Dormouse: what every room may name and none may own.
//!
//! No I/O, no clock, no serialization. A value of a type in this crate is valid by construction:
//! text becomes a type here once, at the edge, and is never parsed again.
//!
//! | module | nouns |
//! |---|---|
//! | [`id`] | workload ids, names, attempts, generations, epochs |
//! | [`time`] | monotonic and wall time, durations in words |
//! | [`units`] | bytes |
//! | [`state`] | the states of a workload and the table of legal transitions |
//! | [`policy`] | the standby policy |
//! | [`flow`] | tracked flows, the classifier, observations with explicit gaps |
//! | [`workload`] | what the engine sees of a workload, and how sleeps and wakes end |
//! | [`plant`] | faults that the simulation switches on |
//! | [`spec`] | what a caller asks for |
//! | [`trust`] | what can be wrong with a saved image, and what follows |
//! | [`error`] | error kinds, stable codes, retry advice |
//! | [`code`] | what is said of an error code |
//! | [`codes`] | the codes of its errors, with meaning and advice |

pub mod code;
pub mod codes;
pub mod error;
pub mod flow;
pub mod id;
pub mod plant;
pub mod policy;
pub mod spec;
pub mod state;
pub mod time;
pub mod trust;
pub mod units;
pub mod workload;

pub use error::{Fault, Kind, Retry};
pub use flow::{Flow, FlowKey, Observation, Protocol, SightLoss, TcpState};
pub use id::{Attempt, Epoch, Generation, Name, WorkloadId};
pub use policy::StandbyPolicy;
pub use spec::{Addresses, InstanceSpec, MacAddress};
pub use state::{FailReason, State};
pub use time::{MonoTime, WallTime};
pub use trust::{Digest, ImagePart, Lost, OnLostMemory, PartFault};
pub use units::Bytes;
pub use workload::{SleepEnd, SleepTrigger, WakeCause, WakeEnd, WorkloadView};

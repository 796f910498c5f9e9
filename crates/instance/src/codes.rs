//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[
    Section {
        title: "Instances",
        intro: "",
        codes: &[
            Code::new(
                "INSTANCE_NOT_FOUND",
                &[Kind::NotFound],
                "no instance has this name, id or beginning of an id",
                "`dormouse ps -a`",
            ),
            Code::new(
                "INSTANCE_AMBIGUOUS",
                &[Kind::Invalid],
                "several ids begin so; the message lists them",
                "write more characters",
            ),
            Code::new(
                "INSTANCE_NAME_TAKEN",
                &[Kind::Exists],
                "another instance has the name",
                "choose another, or remove that one",
            ),
            Code::new(
                "INSTANCE_EXHAUSTED",
                &[Kind::Exhausted],
                "no user id or no address is left",
                "remove instances, or enlarge `hypervisor.uid_count` or `network.ipv4_pool`",
            ),
            Code::new(
                "INSTANCE_NOT_STOPPED",
                &[Kind::WrongState],
                "removal of an instance that runs or sleeps",
                "stop it first, or `dormouse rm -f`",
            ),
            Code::new(
                "INSTANCE_CHANGED",
                &[Kind::Conflict],
                "the etag sent is not the instance's",
                "read it again, then repeat",
            ),
            Code::new(
                "INSTANCE_FAILED",
                &[Kind::WrongState],
                "what was asked did not succeed; the message says why",
                "`dormouse inspect NAME` for the state, `dormouse logs --source vmm NAME`",
            ),
            Code::new(
                "INSTANCE_OVERTAKEN",
                &[Kind::Conflict],
                "another request changed the state first",
                "look at the state, then decide",
            ),
            Code::new(
                "INSTANCE_INTERRUPTED",
                &[Kind::Conflict],
                "a standby that yields to traffic met traffic; it runs",
                "repeat later",
            ),
            Code::new(
                "INSTANCE_WRONG_STATE",
                &[Kind::WrongState],
                "its state does not allow this; the message names the state",
                "wait, or ask for something else",
            ),
            Code::new(
                "INSTANCE_BEING_DELETED",
                &[Kind::WrongState],
                "it is being removed",
                "`dormouse wait --for deleted NAME`",
            ),
            Code::new(
                "INSTANCE_CANNOT_SLEEP",
                &[Kind::Unsupported],
                "its driver or a device cannot be saved",
                "none on this host",
            ),
            Code::new(
                "INSTANCE_SLEEP_COMMITTED",
                &[Kind::WrongState],
                "the sleep can no longer be taken back",
                "wake it",
            ),
            Code::new(
                "INSTANCE_NO_SUCH_SLEEP",
                &[Kind::Conflict],
                "the sleep to be taken back is not under way",
                "none: it is over",
            ),
            Code::new(
                "INSTANCE_BUSY",
                &[Kind::Unavailable],
                "32 requests wait for this instance already",
                "repeat after a pause",
            ),
            Code::new(
                "INSTANCE_WAIT_ELAPSED",
                &[Kind::Timeout],
                "the wanted state was not reached in time",
                "wait again",
            ),
            Code::new(
                "INSTANCE_RANDOM",
                &[Kind::Unavailable],
                "the kernel gave no random bytes, without which nothing is made",
                "read the cause; look at filters on the daemon",
            ),
            Code::new(
                "INSTANCE_RECORD",
                &[Kind::Corrupt],
                "the record of an instance has an impossible field; it is passed over at the start",
                "keep `dormouse.db`; see the runbook",
            ),
            Code::new(
                "SHUTTING_DOWN",
                &[Kind::Unavailable],
                "the daemon ends",
                "repeat when it is back",
            ),
        ],
    },
    Section {
        title: "Memory images",
        intro: "",
        codes: &[
            Code::new(
                "MEMORY_WRITE",
                &[Kind::Exhausted, Kind::Unavailable],
                "a memory image could not be written",
                "free space, see the runbook",
            ),
            Code::new(
                "MEMORY_OPEN",
                &[Kind::Unavailable],
                "a memory image could not be opened or read",
                "read the cause",
            ),
            Code::new(
                "MEMORY_REMOVE",
                &[Kind::Unavailable],
                "a memory image could not be removed",
                "read the cause",
            ),
            Code::new(
                "MEMORY_RESERVE",
                &[Kind::Exhausted, Kind::Unavailable],
                "the disk has no room for the RAM of a wake",
                "free space",
            ),
            Code::new(
                "MEMORY_SIZE",
                &[Kind::Corrupt],
                "a memory image is not of the recorded size",
                "the image is lost; stop, then start the instance",
            ),
        ],
    },
    Section {
        title: "Saved images",
        intro: "Why an image is not loaded: the state reason of a failed instance begins with `the memory image is lost`, \
                and `dormouse inspect` shows code, part, what was found and what was wanted under `snapshot.lost`. \
                Parts are `manifest`, `state`, `memory`, `disk` and `monitor`. What follows is the instance's policy \
                (`--on-lost-memory`): `stay-stopped` fails it, and a start boots it from its disk; `cold-boot` boots it \
                on its next wake.",
        codes: &[
            Code::new(
                "SNAPSHOT_MISSING",
                &[Kind::Corrupt],
                "a file of the image is gone",
                "find out who removed it; start the instance",
            ),
            Code::new(
                "SNAPSHOT_UNREADABLE",
                &[Kind::Corrupt],
                "the disk does not give a file back",
                "look at the kernel's log and at the disk; start the instance",
            ),
            Code::new(
                "SNAPSHOT_SIZE",
                &[Kind::Corrupt],
                "a file has another length",
                "as above",
            ),
            Code::new(
                "SNAPSHOT_INODE",
                &[Kind::Corrupt],
                "memory is another file than the one that the guest left, in the same boot",
                "do not copy or replace files of sleepers; start the instance",
            ),
            Code::new(
                "SNAPSHOT_DIGEST",
                &[Kind::Corrupt],
                "a file is not what was saved: its SHA-256 differs",
                "look at the disk; for `disk`: somebody wrote to it while its guest slept; start the instance",
            ),
            Code::new(
                "SNAPSHOT_MALFORMED",
                &[Kind::Corrupt],
                "the manifest, or the name of the kept monitor, makes no sense",
                "start the instance",
            ),
            Code::new(
                "SNAPSHOT_VERSION",
                &[Kind::Unsupported],
                "a newer program wrote the manifest, or another version saved the state",
                "use that program; start the instance",
            ),
            Code::new(
                "SNAPSHOT_OWNER",
                &[Kind::Corrupt],
                "the manifest is another instance's",
                "start the instance",
            ),
            Code::new(
                "SNAPSHOT_GENERATION",
                &[Kind::Corrupt],
                "the manifest is of another sleep",
                "start the instance",
            ),
            Code::new(
                "SNAPSHOT_UNSETTLED",
                &[Kind::Corrupt],
                "the host rebooted, or mounted the data directory's file system anew, before the memory was known to be on disk",
                "nothing was wrong; start the instance",
            ),
            Code::new(
                "SNAPSHOT_UNSUPPORTED",
                &[Kind::Unsupported],
                "the image is of a sort, or of a driver, that is not loaded here",
                "use the driver that saved it; start the instance",
            ),
            Code::new(
                "SNAPSHOT_REFUSED",
                &[Kind::Corrupt],
                "the monitor refused to load the state",
                "`dormouse logs --source vmm NAME`",
            ),
            Code::new(
                "SNAPSHOT_FILE",
                &[Kind::Exhausted, Kind::Unavailable],
                "a file of the image cannot be read or written now; nothing is lost",
                "read the cause",
            ),
            Code::new(
                "SNAPSHOT_CUT_SHORT",
                &[Kind::Cancelled],
                "a wake, a stop or the end of the daemon came before the comparison was over",
                "none: it is done again",
            ),
        ],
    },
    Section {
        title: "Room on the host",
        intro: "",
        codes: &[
            Code::new(
                "LEDGER_DISK",
                &[Kind::Exhausted],
                "the disk has too little room for what was asked; nothing was begun",
                "free space, or lower `ledger.disk_floor`",
            ),
            Code::new(
                "LEDGER_MEMORY",
                &[Kind::Exhausted],
                "the host cannot promise that much memory; nothing was begun",
                "put instances to sleep or stop some, or raise `ledger.memory_percent`",
            ),
            Code::new(
                "LEDGER_TMPFS",
                &[Kind::Exhausted],
                "the tmpfs for guest memory is promised to others; nothing was begun",
                "put instances to sleep or stop some, or raise `memory.tmpfs_size`",
            ),
        ],
    },
];

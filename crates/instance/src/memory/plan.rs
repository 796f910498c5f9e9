//! Decisions about guest RAM: pure.

use dormouse_model::Bytes;
use dormouse_model::spec::Placement;

/// The file that holds the truth about a guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Home {
    /// On our tmpfs.
    Tmpfs,
    /// On the data directory's file system.
    Disk,
}

/// How a VMM maps the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Writes of the guest reach the file: a sleep saves device state only.
    Shared,
    /// Writes of the guest stay in its process: a sleep writes the dirtied pages back.
    Private,
}

/// One guest's RAM as its record tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestRam {
    /// Where RAM lives by the caller's wish, `Auto` resolved at creation.
    pub placement: Placement,
    /// Size of the RAM.
    pub size: Bytes,
    /// Which file is the truth now.
    pub home: Home,
    /// How the running VMM maps it; asleep: how the last one did.
    pub sharing: Sharing,
}

impl GuestRam {
    /// The image of a guest that boots.
    #[must_use]
    pub const fn fresh(placement: Placement, size: Bytes) -> Self {
        let home = match placement {
            Placement::Disk => Home::Disk,
            Placement::Auto | Placement::Tmpfs | Placement::Spill => Home::Tmpfs,
        };
        Self {
            placement,
            size,
            home,
            sharing: Sharing::Shared,
        }
    }

    /// How a wake of this image maps it.
    ///
    /// A file that was spilled is mapped privately: an awake guest would otherwise write gigabytes a
    /// minute back to the disk. A file that is on tmpfs, or on disk by choice, is mapped shared.
    #[must_use]
    pub const fn woken(self) -> Self {
        let sharing = match (self.placement, self.home) {
            (Placement::Spill | Placement::Auto, Home::Disk) => Sharing::Private,
            (Placement::Disk | Placement::Tmpfs, Home::Disk) | (_, Home::Tmpfs) => Sharing::Shared,
        };
        Self { sharing, ..self }
    }

    /// Whether the dirtied pages must be written back before the process may go.
    #[must_use]
    pub const fn writes_back(self) -> bool {
        matches!(self.sharing, Sharing::Private)
    }

    /// Whether disk blocks must be reserved before a wake: a shared mapping of a hole on a full file
    /// system ends the VMM with SIGBUS.
    #[must_use]
    pub const fn reserves(self) -> bool {
        matches!((self.woken().sharing, self.home), (Sharing::Shared, Home::Disk))
    }

    /// What giving the memory back takes once the guest sleeps.
    #[must_use]
    pub const fn give_back(self) -> GiveBack {
        match (self.placement, self.home) {
            (Placement::Spill | Placement::Auto, Home::Tmpfs) => GiveBack::CopyToDisk,
            (_, Home::Disk) => GiveBack::FlushDisk,
            (Placement::Tmpfs | Placement::Disk, Home::Tmpfs) => GiveBack::LeaveToSwap,
        }
    }
}

/// How a sleeper's memory is given back to the host, in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GiveBack {
    /// Copy the tmpfs file to a sparse disk file, then drop it.
    CopyToDisk,
    /// Write dirty pages out, and take the digest; clean ones are reclaimed by the kernel when it wants them.
    FlushDisk,
    /// The kernel swaps tmpfs pages out under pressure.
    LeaveToSwap,
}

/// The placement that `auto` means on a host with `swap` bytes of swap.
#[must_use]
pub fn default_placement(swap: Bytes) -> Placement {
    if swap > Bytes(0) {
        Placement::Tmpfs
    } else {
        Placement::Spill
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the module, row by row.
    #[test]
    fn every_placement_follows_the_table() {
        use GiveBack::{CopyToDisk, FlushDisk, LeaveToSwap};
        for (placement, home, sharing, writes_back, reserves, give_back) in [
            (
                Placement::Tmpfs,
                Home::Tmpfs,
                Sharing::Shared,
                false,
                false,
                LeaveToSwap,
            ),
            (
                Placement::Disk,
                Home::Disk,
                Sharing::Shared,
                false,
                true,
                FlushDisk,
            ),
            (
                Placement::Spill,
                Home::Tmpfs,
                Sharing::Shared,
                false,
                false,
                CopyToDisk,
            ),
            (
                Placement::Spill,
                Home::Disk,
                Sharing::Private,
                true,
                false,
                FlushDisk,
            ),
        ] {
            let image = GuestRam {
                home,
                ..GuestRam::fresh(placement, Bytes::mib(256))
            };
            let woken = image.woken();
            assert_eq!(woken.sharing, sharing, "{placement:?} {home:?}");
            assert_eq!(woken.writes_back(), writes_back);
            assert_eq!(image.reserves(), reserves);
            assert_eq!(image.give_back(), give_back);
        }
    }

    #[test]
    fn auto_means_tmpfs_only_where_swap_can_take_it() {
        assert_eq!(default_placement(Bytes(0)), Placement::Spill);
        assert_eq!(default_placement(Bytes::mib(1)), Placement::Tmpfs);
    }
}

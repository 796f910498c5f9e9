//! The checks.

use std::os::fd::AsFd;

use super::{
    DriverError, ExitReason, Gone, PATIENCE, RAM, Sharing, Stand, Verdict, Violation, VmStatus, end, ensure,
    must_fail, soon,
};
use crate::memory::write_back_private;
use crate::port::{Deadline, DriverKind};
use std::time::Duration;

/// One demand on a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Check {
    /// A launched guest executes.
    LaunchRuns,
    /// Pausing twice is as pausing once, and the guest rests.
    PauseIsIdempotent,
    /// Resuming twice likewise, and the guest goes on where it was.
    ResumeIsIdempotent,
    /// A snapshot of a running machine pauses it, and it can go on afterwards.
    SnapshotPauses,
    /// A snapshot into a file that was longer leaves nothing of it.
    SnapshotReplacesTheFile,
    /// What is restored is paused; resumed, it goes on exactly where it was. Three times over.
    RestoreIsPausedAndExact,
    /// Over private RAM the guest goes on, and the file stays as it was.
    RestorePrivateLeavesTheFile,
    /// What was written to private RAM is put back into the file, which then wakes shared, exactly.
    WriteBackIsExact,
    /// Nonsense and nothing are no state: an error, no process.
    RestoreOfNonsenseFails,
    /// A launch without a kernel is refused.
    LaunchWithoutKernelIsRefused,
    /// A kill takes effect while a snapshot is being written.
    KillDuringSnapshot,
    /// Killing twice is as killing once.
    KillIsIdempotent,
    /// Everybody who waits for the end is told the same, early or late.
    ExitIsToldToAll,
    /// After the end calls say so.
    CallsAfterExitSayEnded,
    /// A paused machine that is stopped gets no grace.
    StopOfPausedIsPrompt,
    /// A guest that does not hear the button is ended after the grace.
    StopEndsADeafGuest,
    /// A dropped handle leaves the guest running, and it can be adopted.
    DropDetaches,
    /// A paused machine is adopted paused.
    AdoptKeepsPaused,
    /// A process that is not the recorded one is not adopted.
    AdoptProvesIdentity,
    /// What has ended is gone.
    AdoptOfEndedIsGone,
    /// A deadline that has passed is honoured, and no process is left.
    DeadlineIsHonoured,
    /// A launch that is dropped leaves no process.
    DroppedLaunchLeavesNothing,
    /// A call that is dropped does not disturb the next.
    DroppedCallIsHarmless,
}

impl Check {
    /// Every check.
    pub const ALL: [Self; 23] = [
        Self::LaunchRuns,
        Self::PauseIsIdempotent,
        Self::ResumeIsIdempotent,
        Self::SnapshotPauses,
        Self::SnapshotReplacesTheFile,
        Self::RestoreIsPausedAndExact,
        Self::RestorePrivateLeavesTheFile,
        Self::WriteBackIsExact,
        Self::RestoreOfNonsenseFails,
        Self::LaunchWithoutKernelIsRefused,
        Self::KillDuringSnapshot,
        Self::KillIsIdempotent,
        Self::ExitIsToldToAll,
        Self::CallsAfterExitSayEnded,
        Self::StopOfPausedIsPrompt,
        Self::StopEndsADeafGuest,
        Self::DropDetaches,
        Self::AdoptKeepsPaused,
        Self::AdoptProvesIdentity,
        Self::AdoptOfEndedIsGone,
        Self::DeadlineIsHonoured,
        Self::DroppedLaunchLeavesNothing,
        Self::DroppedCallIsHarmless,
    ];

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LaunchRuns => "launch runs",
            Self::PauseIsIdempotent => "pause is idempotent",
            Self::ResumeIsIdempotent => "resume is idempotent",
            Self::SnapshotPauses => "snapshot pauses",
            Self::SnapshotReplacesTheFile => "snapshot replaces the file",
            Self::RestoreIsPausedAndExact => "restore is paused and exact",
            Self::RestorePrivateLeavesTheFile => "restore over private RAM leaves the file",
            Self::WriteBackIsExact => "write back of private RAM is exact",
            Self::RestoreOfNonsenseFails => "restore of nonsense fails",
            Self::LaunchWithoutKernelIsRefused => "launch without a kernel is refused",
            Self::KillDuringSnapshot => "kill during a snapshot",
            Self::KillIsIdempotent => "kill is idempotent",
            Self::ExitIsToldToAll => "exit is told to all",
            Self::CallsAfterExitSayEnded => "calls after the exit say so",
            Self::StopOfPausedIsPrompt => "stop of a paused machine is prompt",
            Self::StopEndsADeafGuest => "stop ends a deaf guest",
            Self::DropDetaches => "drop detaches",
            Self::AdoptKeepsPaused => "adopt keeps paused",
            Self::AdoptProvesIdentity => "adopt proves identity",
            Self::AdoptOfEndedIsGone => "adopt of what has ended is gone",
            Self::DeadlineIsHonoured => "deadline is honoured",
            Self::DroppedLaunchLeavesNothing => "dropped launch leaves nothing",
            Self::DroppedCallIsHarmless => "dropped call is harmless",
        }
    }

    /// Runs it on a stand that nothing else uses meanwhile.
    ///
    /// # Errors
    /// How the driver failed it.
    pub async fn run(self, stand: &Stand) -> Result<(), Violation> {
        match self {
            Self::LaunchRuns => launch_runs(stand).await,
            Self::PauseIsIdempotent => pause_is_idempotent(stand).await,
            Self::ResumeIsIdempotent => resume_is_idempotent(stand).await,
            Self::SnapshotPauses => snapshot_pauses(stand).await,
            Self::SnapshotReplacesTheFile => snapshot_replaces_the_file(stand).await,
            Self::RestoreIsPausedAndExact => restore_is_paused_and_exact(stand).await,
            Self::RestorePrivateLeavesTheFile => restore_private_leaves_the_file(stand).await,
            Self::WriteBackIsExact => write_back_is_exact(stand).await,
            Self::RestoreOfNonsenseFails => restore_of_nonsense_fails(stand).await,
            Self::LaunchWithoutKernelIsRefused => launch_without_kernel_is_refused(stand).await,
            Self::KillDuringSnapshot => kill_during_snapshot(stand).await,
            Self::KillIsIdempotent => kill_is_idempotent(stand).await,
            Self::ExitIsToldToAll => exit_is_told_to_all(stand).await,
            Self::CallsAfterExitSayEnded => calls_after_exit_say_ended(stand).await,
            Self::StopOfPausedIsPrompt => stop_of_paused_is_prompt(stand).await,
            Self::StopEndsADeafGuest => stop_ends_a_deaf_guest(stand).await,
            Self::DropDetaches => drop_detaches(stand).await,
            Self::AdoptKeepsPaused => adopt_keeps_paused(stand).await,
            Self::AdoptProvesIdentity => adopt_proves_identity(stand).await,
            Self::AdoptOfEndedIsGone => adopt_of_ended_is_gone(stand).await,
            Self::DeadlineIsHonoured => deadline_is_honoured(stand).await,
            Self::DroppedLaunchLeavesNothing => dropped_launch_leaves_nothing(stand).await,
            Self::DroppedCallIsHarmless => dropped_call_is_harmless(stand).await,
        }
    }
}

async fn launch_runs(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    stand.beats_on(&*vm).await?;
    end(stand, &*vm).await
}

async fn pause_is_idempotent(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    vm.pause().await?;
    stand.rests(&*vm).await?;
    vm.pause().await?;
    stand.rests(&*vm).await?;
    end(stand, &*vm).await
}

async fn resume_is_idempotent(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    vm.resume().await?;
    vm.pause().await?;
    vm.resume().await?;
    vm.resume().await?;
    stand.beats_on(&*vm).await?;
    end(stand, &*vm).await
}

async fn snapshot_pauses(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    stand.beats_on(&*vm).await?;
    stand.snapshot(&*vm).await?;
    stand.rests(&*vm).await?;
    vm.resume().await?;
    stand.beats_on(&*vm).await?;
    end(stand, &*vm).await
}

async fn snapshot_replaces_the_file(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    std::fs::write(stand.path("state"), vec![b'x'; 4 << 20])?;
    stand.snapshot(&*vm).await?;
    let first = std::fs::read(stand.path("state"))?;
    // Again, through a descriptor that stands at the end.
    stand.snapshot(&*vm).await?;
    let second = std::fs::read(stand.path("state"))?;
    ensure(!first.contains(&b'x') || first.len() < 4 << 20, || {
        "old bytes are left".into()
    })?;
    ensure(first.len() == second.len(), || {
        format!("{} bytes, then {}", first.len(), second.len())
    })?;
    end(stand, &*vm).await
}

async fn restore_is_paused_and_exact(stand: &Stand) -> Verdict {
    let mut vm = stand.launch().await?;
    for _ in 0..3 {
        stand.beats_on(&*vm).await?;
        vm.pause().await?;
        stand.snapshot(&*vm).await?;
        end(stand, &*vm).await?;
        vm = stand.restore(Sharing::Shared).await?;
        stand.rests(&*vm).await?;
        vm.resume().await?;
    }
    stand.beats_on(&*vm).await?;
    end(stand, &*vm).await
}

async fn restore_private_leaves_the_file(stand: &Stand) -> Verdict {
    if !stand.driver.probe().await?.can.private_ram {
        return Ok(());
    }
    let vm = stand.launch().await?;
    stand.beats_on(&*vm).await?;
    stand.snapshot(&*vm).await?;
    end(stand, &*vm).await?;
    let before = std::fs::read(stand.path("ram"))?;
    let vm = stand.restore(Sharing::Private).await?;
    vm.resume().await?;
    stand.beats_on(&*vm).await?;
    end(stand, &*vm).await?;
    ensure(before == std::fs::read(stand.path("ram"))?, || {
        "the file was written".into()
    })
}

async fn write_back_is_exact(stand: &Stand) -> Verdict {
    // The fake has no memory to look into.
    if stand.driver.kind() == DriverKind::Fake || !stand.driver.probe().await?.can.private_ram {
        return Ok(());
    }
    let vm = stand.launch().await?;
    stand.beats_on(&*vm).await?;
    stand.snapshot(&*vm).await?;
    end(stand, &*vm).await?;
    let vm = stand.restore(Sharing::Private).await?;
    vm.resume().await?;
    stand.beats_on(&*vm).await?;
    stand.snapshot(&*vm).await?;
    let ram = stand.file("ram")?;
    let written = write_back_private(vm.process(), ram.as_fd(), RAM)?;
    ensure(written.bytes >= 4096 && written.bytes < RAM.0 / 2, || {
        format!("{written:?}")
    })?;
    // Undone before the commit: the same process goes on, and is saved again.
    vm.resume().await?;
    stand.beats_on(&*vm).await?;
    stand.snapshot(&*vm).await?;
    write_back_private(vm.process(), ram.as_fd(), RAM)?;
    end(stand, &*vm).await?;
    let vm = stand.restore(Sharing::Shared).await?;
    stand.rests(&*vm).await?;
    vm.resume().await?;
    stand.beats_on(&*vm).await?;
    let refused = write_back_private(vm.process(), ram.as_fd(), RAM);
    must_fail(refused.map_err(Violation::from), "a write back of shared RAM")?;
    end(stand, &*vm).await
}

async fn restore_of_nonsense_fails(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    end(stand, &*vm).await?;
    for state in [&b""[..], b"no state", &[0; 4096]] {
        std::fs::write(stand.path("state"), state)?;
        let error = must_fail(stand.restore(Sharing::Shared).await, "a restore of nonsense")?;
        ensure(
            matches!(error, DriverError::Ended { .. } | DriverError::Refused { .. }),
            || format!("nonsense gave: {error}"),
        )?;
        stand.nothing_left().await?;
    }
    Ok(())
}

async fn launch_without_kernel_is_refused(stand: &Stand) -> Verdict {
    let mut parts = stand.parts()?;
    parts.boot = None;
    let launched = stand.driver.launch(&Stand::spec(), parts, soon()).await;
    let error = must_fail(launched.map_err(Violation::from), "a launch without a kernel")?;
    ensure(matches!(error, DriverError::Part { .. }), || {
        format!("it gave: {error}")
    })?;
    stand.nothing_left().await
}

async fn kill_during_snapshot(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    let into = stand.file("state")?.into();
    let (saved, killed) = tokio::join!(vm.snapshot(into), vm.kill());
    ensure(killed? == ExitReason::Signal(9), || {
        "the kill was not the end".into()
    })?;
    if let Err(error) = saved {
        ensure(matches!(error, DriverError::Ended { .. }), || {
            format!("the snapshot said: {error}")
        })?;
    }
    stand.nothing_left().await
}

async fn kill_is_idempotent(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    let (first, second) = tokio::join!(vm.kill(), vm.kill());
    let all = [first?, second?, vm.kill().await?];
    ensure(all == [ExitReason::Signal(9); 3], || format!("{all:?}"))?;
    stand.nothing_left().await
}

async fn exit_is_told_to_all(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    let (first, second, killed) = tokio::join!(vm.exited(), vm.exited(), vm.kill());
    let killed = killed?;
    let late = tokio::time::timeout_at(soon(), vm.exited()).await;
    ensure(first == killed && second == killed && late == Ok(killed), || {
        format!("{first}, {second}, {killed}, {late:?}")
    })
}

async fn calls_after_exit_say_ended(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    end(stand, &*vm).await?;
    let into = stand.file("state")?.into();
    let results = [
        vm.pause().await,
        vm.resume().await,
        vm.snapshot(into).await.map(drop),
    ];
    for result in results {
        let error = must_fail(result.map_err(Violation::from), "a call on an ended machine")?;
        ensure(matches!(error, DriverError::Ended { .. }), || {
            format!("it gave: {error}")
        })?;
    }
    let status = vm.inspect().await?;
    ensure(status == VmStatus::Exited(ExitReason::Signal(9)), || {
        format!("{status:?}")
    })?;
    let reason = vm.stop(PATIENCE).await?;
    ensure(reason == ExitReason::Signal(9), || {
        format!("a late stop changed the reason to: {reason}")
    })
}

async fn stop_of_paused_is_prompt(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    vm.pause().await?;
    let stopped = tokio::time::timeout(PATIENCE, vm.stop(PATIENCE * 10)).await;
    let reason = stopped.map_err(|_| Violation::Broken("a paused machine was given grace".into()))??;
    ensure(reason == ExitReason::Asked, || format!("it ended by: {reason}"))?;
    stand.nothing_left().await
}

async fn stop_ends_a_deaf_guest(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    let reason = vm.stop(Duration::from_millis(20)).await?;
    ensure(reason == ExitReason::Asked, || format!("it ended by: {reason}"))?;
    stand.nothing_left().await
}

async fn drop_detaches(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    let record = stand.record(&*vm);
    drop(vm);
    let adopted = stand.adopt(&record).await?;
    let vm = adopted.map_err(|gone| Violation::Broken(format!("a detached machine is gone: {gone}")))?;
    ensure(vm.process() == &record.identity, || {
        "another process was adopted".into()
    })?;
    stand.beats_on(&*vm).await?;
    stand.snapshot(&*vm).await?;
    end(stand, &*vm).await
}

async fn adopt_keeps_paused(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    vm.pause().await?;
    let record = stand.record(&*vm);
    drop(vm);
    let adopted = stand.adopt(&record).await?;
    let vm = adopted.map_err(|gone| Violation::Broken(format!("a detached machine is gone: {gone}")))?;
    stand.rests(&*vm).await?;
    vm.resume().await?;
    stand.beats_on(&*vm).await?;
    end(stand, &*vm).await
}

async fn adopt_proves_identity(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    let mut record = stand.record(&*vm);
    record.identity.start_ticks += 1;
    let other_start = stand.adopt(&record).await?.err();
    ensure(other_start == Some(Gone::PidReused), || {
        format!("another start time gave {other_start:?}")
    })?;
    record.identity.boot_id = "another".into();
    let other_boot = stand.adopt(&record).await?.err();
    ensure(other_boot == Some(Gone::Rebooted), || {
        format!("another boot gave {other_boot:?}")
    })?;
    stand.beats_on(&*vm).await?;
    end(stand, &*vm).await
}

async fn adopt_of_ended_is_gone(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    let record = stand.record(&*vm);
    end(stand, &*vm).await?;
    let gone = stand.adopt(&record).await?.err();
    ensure(matches!(gone, Some(Gone::Ended | Gone::PidReused)), || {
        format!("it gave {gone:?}")
    })
}

async fn deadline_is_honoured(stand: &Stand) -> Verdict {
    // What is done once is done before.
    stand.driver.probe().await?;
    let begun = Deadline::now();
    let launched = stand.driver.launch(&Stand::spec(), stand.parts()?, begun).await;
    let error = must_fail(launched.map_err(Violation::from), "a launch past its deadline")?;
    ensure(matches!(error, DriverError::Deadline { .. }), || {
        format!("it gave: {error}")
    })?;
    ensure(begun.elapsed() < Duration::from_secs(2), || {
        format!("it took {:?}", begun.elapsed())
    })?;
    stand.nothing_left().await
}

async fn dropped_launch_leaves_nothing(stand: &Stand) -> Verdict {
    stand.driver.probe().await?;
    let spec = Stand::spec();
    // At whatever point of the launch the time is up.
    for millis in [0, 1, 2, 4, 8, 16] {
        let launch = stand.driver.launch(&spec, stand.parts()?, soon());
        match tokio::time::timeout(Duration::from_millis(millis), launch).await {
            Ok(vm) => end(stand, &*vm?).await?,
            Err(_) => stand.nothing_left().await?,
        }
    }
    Ok(())
}

async fn dropped_call_is_harmless(stand: &Stand) -> Verdict {
    let vm = stand.launch().await?;
    for _ in 0..3 {
        let left = tokio::time::timeout(Duration::ZERO, vm.pause()).await;
        // Done or not, what follows counts.
        drop(left);
        stand.snapshot(&*vm).await?;
        stand.rests(&*vm).await?;
        let into = stand.file("state")?.into();
        drop(tokio::time::timeout(Duration::ZERO, vm.snapshot(into)).await);
        vm.resume().await?;
        stand.beats_on(&*vm).await?;
    }
    end(stand, &*vm).await
}

//! One real guest, in software emulation: kernel, initial file system, agent, root file system and
//! writable disk as they are made here, and the agent's protocol on the port.
//!
//! Needs `DORMOUSE_TEST_GUEST_KERNEL` (a Debian kernel package, or a directory with vmlinuz and modules/)
//! and `DORMOUSE_TEST_AGENT` (the agent, linked statically); `cargo xtask test` sets both.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod machine;

use std::io::Write;
use std::time::Instant;

use dormouse_guest::message::Exit;
use dormouse_guest::{Message, Phase};
use machine::{Daemon, Machine, TOLD_TIME, get, parts};

#[test]
fn a_guest_serves_outlives_its_daemon_and_ends_when_told() {
    let Some(parts) = parts("a_guest_serves_outlives_its_daemon_and_ends_when_told") else {
        return;
    };
    let image = parts.image();
    let began = Instant::now();
    let mut machine = Machine::launch(&parts, &image, "served");
    let mut daemon = Daemon::connect(&machine, 1);
    // Said before the guest is there to hear it.
    daemon.say(&Machine::boot(&image, &[]));
    assert_eq!(daemon.phase(&machine), Phase::Waiting);
    daemon.message(&machine, "Ready", |m| matches!(m, Message::Ready { .. }));
    println!("launch to Ready: {} ms", began.elapsed().as_millis());
    let page = get(&machine, "/index.html");
    assert!(
        page.ends_with("a dormouse\n"),
        "{page}\nconsole:\n{}",
        machine.console()
    );

    let clock = daemon.say(&Message::ClockSet {
        unix_nanos: TOLD_TIME + 1_000_000_000_000,
    });
    daemon.done(&machine, clock);
    let reseed = daemon.say(&Message::Reseed { seed: [3; 32] });
    daemon.done(&machine, reseed);
    daemon.say(&Message::Ping { nonce: 5 });
    let pong = daemon.message(&machine, "Pong", |m| matches!(m, Message::Pong { nonce: 5, .. }));
    let Message::Pong { unix_nanos, .. } = pong else {
        panic!("{pong:?}")
    };
    let since = unix_nanos.checked_sub(TOLD_TIME + 1_000_000_000_000).unwrap();
    assert!(
        since < 60_000_000_000,
        "the guest's clock is {since} ns after what it was told"
    );

    // The daemon dies in the middle of a sentence; the next one is greeted and finds all running.
    daemon.say(&Message::ClockSet {
        unix_nanos: TOLD_TIME,
    });
    let half = daemon.channel.outgoing()[..20].to_vec();
    daemon.stream.write_all(&half).unwrap();
    drop(daemon);
    assert!(
        get(&machine, "/index.html").ends_with("a dormouse\n"),
        "served without a daemon"
    );
    let mut daemon = Daemon::connect(&machine, 2);
    assert_eq!(daemon.phase(&machine), Phase::Running);
    daemon.say(&Message::Shutdown { grace_millis: 10_000 });
    let exited = daemon.message(&machine, "Exited", |m| matches!(m, Message::Exited { .. }));
    daemon.flush();
    let by_term = Exit::Signal {
        signal: 15,
        out_of_memory: false,
    };
    assert_eq!(
        exited,
        Message::Exited {
            exit: by_term,
            problem: String::new()
        }
    );
    machine.ended();
    println!("console:\n{}", machine.console());
}

#[test]
fn a_workload_sees_what_it_was_promised_and_its_status_is_told() {
    let Some(parts) = parts("a_workload_sees_what_it_was_promised_and_its_status_is_told") else {
        return;
    };
    let mut image = parts.image();
    image.config.entrypoint = vec!["sh".to_owned(), "-c".to_owned()];
    image.config.user = "nobody:nogroup".to_owned();
    let script = "id; pwd; echo $GREETING $HOME $HOSTNAME; cat /etc/hosts /etc/resolv.conf; ulimit -n; \
                  ip addr; ip route; ip -6 route; ip neigh; cat /proc/mounts; echo err >&2; \
                  echo x > /tmp/x && cat /tmp/x; cat /proc/1/comm; exit 7";
    let mut machine = Machine::launch(&parts, &image, "script");
    let mut daemon = Daemon::connect(&machine, 1);
    daemon.say(&Machine::boot(&image, &[script]));
    let exited = daemon.message(&machine, "Exited", |m| matches!(m, Message::Exited { .. }));
    drop(daemon);
    // Nobody acknowledges: it goes off all the same.
    machine.ended();
    let console = machine.console();
    println!("{console}");
    assert_eq!(
        exited,
        Message::Exited {
            exit: Exit::Code(7),
            problem: String::new()
        }
    );
    for line in [
        "uid=65534(nobody) gid=65534(nogroup)",
        "/srv/made\n",
        "good evening / sleeper\n",
        "fd78::5 sleeper\n",
        "nameserver 192.0.2.53\n",
        "1048576\n",
        "inet 10.78.0.5/32",
        "inet6 fd78::5/128",
        "default via 169.254.1.1 dev eth0",
        "default via fe80::1 dev eth0",
        "169.254.1.1 dev eth0 lladdr 52:55:0a:4e:00:02",
        "fe80::1 dev eth0 lladdr 52:55:0a:4e:00:02",
        "cgroup2 /sys/fs/cgroup",
        "tmpfs /dev/shm",
        "err\n",
        "x\n",
    ] {
        assert!(console.contains(line), "{line:?} is not on the console");
    }
    assert!(
        !console.contains("inet6 fe80"),
        "a link-local address of the guest's own would speak on the wire"
    );
}

#[test]
fn a_program_that_is_not_there_and_a_user_that_is_not_there_are_told() {
    let Some(parts) = parts("a_program_that_is_not_there_is_told") else {
        return;
    };
    let mut image = parts.image();
    image.config.entrypoint = vec!["/no/such/program".to_owned()];
    let mut machine = Machine::launch(&parts, &image, "absent");
    let mut daemon = Daemon::connect(&machine, 1);
    daemon.say(&Machine::boot(&image, &[]));
    let exited = daemon.message(&machine, "Exited", |m| matches!(m, Message::Exited { .. }));
    let Message::Exited {
        exit: Exit::Code(127),
        problem,
    } = exited
    else {
        panic!("{exited:?}")
    };
    assert!(problem.contains("/no/such/program"), "{problem}");
    drop(daemon);
    machine.ended();

    image.config.user = "ghost".to_owned();
    let mut machine = Machine::launch(&parts, &image, "ghost");
    let mut daemon = Daemon::connect(&machine, 1);
    daemon.say(&Machine::boot(&image, &[]));
    let failed = daemon.message(&machine, "BootFailed", |m| {
        matches!(m, Message::BootFailed { .. })
    });
    let Message::BootFailed { step, problem } = failed else {
        panic!("{failed:?}")
    };
    assert!(step == "user" && problem.contains("ghost"), "{step}: {problem}");
    drop(daemon);
    machine.ended();
}

#[test]
fn a_guest_and_its_agent_survive_a_sleep() {
    let Some(parts) = parts("a_guest_and_its_agent_survive_a_sleep") else {
        return;
    };
    let image = parts.image();
    let mut machine = Machine::launch(&parts, &image, "sleeper");
    let mut daemon = Daemon::connect(&machine, 1);
    daemon.say(&Machine::boot(&image, &[]));
    daemon.message(&machine, "Ready", |m| matches!(m, Message::Ready { .. }));
    assert!(get(&machine, "/index.html").ends_with("a dormouse\n"));
    for cycle in 1..=3 {
        // Asked and not heard before the stop: the same daemon says it again after the wake.
        let clock = daemon
            .channel
            .send(&Message::ClockSet {
                unix_nanos: TOLD_TIME,
            })
            .unwrap();
        machine.sleep();
        let began = Instant::now();
        machine.wake();
        if cycle == 2 {
            // Another daemon wakes it.
            daemon = Daemon::connect(&machine, 2);
            assert_eq!(daemon.phase(&machine), Phase::Running);
        } else {
            daemon.reconnect(&machine);
            daemon.done(&machine, clock);
        }
        println!(
            "cycle {cycle}: awake and heard after {} ms",
            began.elapsed().as_millis()
        );
        assert!(get(&machine, "/index.html").ends_with("a dormouse\n"));
    }
    daemon.say(&Message::Shutdown { grace_millis: 10_000 });
    daemon.message(&machine, "Exited", |m| matches!(m, Message::Exited { .. }));
    daemon.flush();
    machine.ended();
}

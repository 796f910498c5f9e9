//! The loop over the stub's descriptors: control socket, agent's socket, tap.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use dormouse_sys::descriptor::{inherited, receive};
use dormouse_sys::memory::FileMap;
use dormouse_sys::tap::VNET_HEADER_BYTES;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::control::{self, Asked, Conversation, Order};
use crate::guest::Guest;
use crate::options::Machine as Options;

/// The longest frame with its header.
const FRAME: usize = 65_536;

/// What came over the control socket.
struct Client {
    stream: UnixStream,
    conversation: Conversation,
    /// Came with commands and were not taken yet.
    descriptors: Vec<OwnedFd>,
}

struct Machine {
    guest: Guest,
    running: bool,
    control: UnixListener,
    client: Option<Client>,
    agent: UnixListener,
    host: Option<UnixStream>,
    tap: Option<File>,
    console: Option<File>,
    state: Option<File>,
    /// The reason that `SHUTDOWN` gives, once it ends.
    ending: Option<&'static str>,
}

/// Runs the machine to its end.
pub(crate) fn run(options: Options) -> Result<(), String> {
    let mut machine = Machine::assemble(options)?;
    while machine.ending.is_none() {
        machine.turn()?;
    }
    Ok(())
}

fn io(doing: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{doing}: {error}")
}

fn listener(number: i32) -> Result<UnixListener, String> {
    let listener = UnixListener::from(inherited(number).map_err(io("a listener"))?);
    listener.set_nonblocking(true).map_err(io("a listener"))?;
    Ok(listener)
}

impl Machine {
    fn assemble(options: Options) -> Result<Self, String> {
        // Opened again by its path, as QEMU does: the rights of this user decide.
        let ram = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", options.ram))
            .map_err(io("can't open backing store"))?;
        let ram = FileMap::new(&ram, options.ram_bytes, options.shared).map_err(io("mapping RAM"))?;
        let file = |number: Option<i32>| number.map(|number| inherited(number).map(File::from)).transpose();
        let mut console = file(options.console).map_err(io("the console"))?;
        let guest = match options.incoming {
            Some(state) => {
                let state = inherited(state).map_err(io("the state"))?;
                Guest::restore(&options.name, ram, state)?
            }
            None => {
                if let Some(console) = &mut console {
                    console
                        .write_all(b"stub guest: up\n")
                        .map_err(io("the console"))?;
                }
                Guest::boot(&options.name, ram)?
            }
        };
        Ok(Self {
            guest,
            running: !options.paused,
            control: listener(options.control)?,
            client: None,
            agent: listener(options.agent)?,
            host: None,
            tap: file(options.tap).map_err(io("the tap"))?,
            console,
            state: None,
            ending: None,
        })
    }

    /// Waits for something and does it.
    fn turn(&mut self) -> Result<(), String> {
        let ready = self.wait()?;
        if ready.control {
            self.client = self.control.accept().ok().map(|(stream, _)| Client {
                stream,
                conversation: Conversation::default(),
                descriptors: Vec::new(),
            });
            self.say(&control::greeting());
        }
        if ready.client {
            self.converse();
        }
        if ready.agent
            && let Ok((stream, _)) = self.agent.accept()
        {
            stream.set_nonblocking(true).map_err(io("the agent's stream"))?;
            self.host = Some(stream);
        }
        // A stopped machine's guest does nothing.
        if self.running {
            if ready.host {
                self.hear();
            }
            if ready.tap {
                self.receive()?;
            }
            self.speak();
            if self.guest.off && self.ending.is_none() {
                self.end("guest-shutdown", true);
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<Ready, String> {
        let input = PollFlags::POLLIN;
        let mut polled = Vec::with_capacity(5);
        let place = |polled: &mut Vec<PollFd<'_>>| polled.len().checked_sub(1);
        // One client at a time, as QEMU: the next waits in the listener's queue.
        let listening = match &self.client {
            Some(client) => client.stream.as_fd(),
            None => self.control.as_fd(),
        };
        polled.push(PollFd::new(listening, input));
        let host = match &self.host {
            Some(stream) if self.running => {
                let more = if self.guest.outgoing().is_empty() {
                    PollFlags::empty()
                } else {
                    PollFlags::POLLOUT
                };
                polled.push(PollFd::new(stream.as_fd(), input | more));
                place(&mut polled)
            }
            Some(_) => None,
            None => {
                polled.push(PollFd::new(self.agent.as_fd(), input));
                place(&mut polled)
            }
        };
        let tap = match &self.tap {
            Some(tap) if self.running => {
                polled.push(PollFd::new(tap.as_fd(), input));
                place(&mut polled)
            }
            Some(_) | None => None,
        };
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(format!("poll: {errno}")),
        }
        let any = |at: Option<usize>| {
            at.and_then(|at| polled.get(at))
                .and_then(PollFd::any)
                .unwrap_or(false)
        };
        Ok(Ready {
            control: self.client.is_none() && any(Some(0)),
            client: self.client.is_some() && any(Some(0)),
            agent: self.host.is_none() && any(host),
            host: self.host.is_some() && any(host),
            tap: any(tap),
        })
    }

    fn say(&mut self, text: &str) {
        if let Some(client) = &mut self.client
            && client.stream.write_all(text.as_bytes()).is_err()
        {
            self.client = None;
        }
    }

    fn converse(&mut self) {
        let Some(client) = &mut self.client else { return };
        let mut buffer = [0; 4096];
        let asked = match receive(client.stream.as_fd(), &mut buffer) {
            Ok(received) if received.length > 0 => {
                client.descriptors.extend(received.descriptors);
                let bytes = buffer.get(..received.length).unwrap_or_default();
                client.conversation.receive(bytes)
            }
            Ok(_) | Err(_) => {
                self.client = None;
                return;
            }
        };
        for asked in asked {
            match asked {
                Asked::Answer(text) => self.say(&text),
                Asked::Status(id) => {
                    let status = if self.running { "running" } else { "paused" };
                    let value = json!({"status": status, "running": self.running, "singlestep": false});
                    self.say(&control::done(&id, &value));
                }
                Asked::Do(order, id) => {
                    let text = match self.obey(order) {
                        Ok(value) => control::done(&id, &value),
                        Err(why) => control::refused(&id, "GenericError", &why),
                    };
                    self.say(&text);
                }
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<Value, String> {
        match order {
            Order::Stop => self.run_or_stop(false),
            Order::Cont => self.run_or_stop(true),
            Order::TakeDescriptor => {
                let client = self.client.as_mut().ok_or("nobody is there")?;
                let descriptor = client
                    .descriptors
                    .pop()
                    .ok_or("No file descriptor supplied via SCM_RIGHTS")?;
                self.state = Some(File::from(descriptor));
                return Ok(json!({"fdset-id": 100, "fd": 0}));
            }
            Order::DropDescriptor => {
                self.state
                    .take()
                    .ok_or("File descriptor named 'fdset-id:100' not found")?;
            }
            Order::Save => {
                let state = self.state.as_mut().ok_or("Could not open '/dev/fdset/100'")?;
                self.guest.save(state).map_err(io("saving the state"))?;
            }
            Order::PowerDown => {
                self.say(&control::event("POWERDOWN", &json!({})));
                // As an agent with a power button's reader would.
                self.guest.off = true;
            }
            Order::Quit => self.end("host-qmp-quit", false),
        }
        Ok(json!({}))
    }

    fn run_or_stop(&mut self, running: bool) {
        if self.running != running {
            self.running = running;
            let name = if running { "RESUME" } else { "STOP" };
            self.say(&control::event(name, &json!({})));
        }
    }

    fn end(&mut self, reason: &'static str, guest: bool) {
        if let (true, Some(console)) = (guest, &mut self.console) {
            // The end comes whether it is written or not.
            let _lost = console.write_all(b"stub guest: off\n");
        }
        self.say(&control::event(
            "SHUTDOWN",
            &json!({"guest": guest, "reason": reason}),
        ));
        self.ending = Some(reason);
    }

    fn hear(&mut self) {
        let Some(stream) = &mut self.host else { return };
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => self.guest.told(buffer.get(..count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(_) | Err(_) => {
                self.guest.hung_up();
                self.host = None;
            }
        }
    }

    /// Writes what the agent has to say, as far as the stream takes it.
    fn speak(&mut self) {
        while let Some(stream) = &mut self.host
            && !self.guest.outgoing().is_empty()
        {
            match stream.write(self.guest.outgoing()) {
                Ok(count) => self.guest.wrote(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.guest.hung_up();
                    self.host = None;
                }
            }
        }
    }

    fn receive(&mut self) -> Result<(), String> {
        let header = usize::try_from(VNET_HEADER_BYTES).unwrap_or(0);
        let mut buffer = vec![0; FRAME];
        while let Some(tap) = &mut self.tap {
            let count = match tap.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The device was taken away: a guest without a network lives on.
                Err(_) => {
                    self.tap = None;
                    return Ok(());
                }
            };
            let frame = buffer.get(header..count).unwrap_or_default();
            if let Some(answer) = self.guest.receive(frame)? {
                // No offload: every checksum is there.
                let mut out = vec![0; header];
                out.extend_from_slice(&answer);
                // A full queue drops, as any network does.
                let _dropped = tap.write(&out);
            }
        }
        Ok(())
    }
}

/// Which descriptors have something.
struct Ready {
    control: bool,
    client: bool,
    agent: bool,
    host: bool,
    tap: bool,
}

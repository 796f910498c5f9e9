//! One QEMU microvm: everything reaches it as a descriptor, so it runs as its own uid without capabilities.
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::{fs::OpenOptionsExt, net::{UnixListener, UnixStream}, process::CommandExt};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub const DIR: &str = "/dev/shm/spike-parking";
const UID: u32 = 60001;

pub struct Vm { child: Child, qmp: BufReader<UnixStream>, agent: UnixStream }

pub fn ram() -> File {
    let f = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(format!("{DIR}/ram")).unwrap();
    f.set_len(256 << 20).unwrap();
    std::os::unix::fs::fchown(&f, Some(UID), Some(UID)).unwrap(); // QEMU reopens /proc/self/fd/N with its own rights
    f
}

impl Vm {
    /// Boots, or with `state` loads it and stays paused. (A load is complete when QMP greets: no round trip for it.)
    pub fn start(tap: &OwnedFd, ram: &File, state: Option<&File>, boot: &str) -> Vm {
        let path = format!("{DIR}/qmp");
        let _ = std::fs::remove_file(&path);
        let (listener, (agent, theirs)) = (UnixListener::bind(&path).unwrap(), UnixStream::pair().unwrap());
        let log = OpenOptions::new().append(true).create(true).open(format!("{DIR}/serial")).unwrap();
        let mut fds = vec![tap.as_raw_fd(), ram.as_raw_fd(), listener.as_raw_fd(), theirs.as_raw_fd(), log.as_raw_fd()];
        let mut line = format!("-nodefaults -no-user-config -display none -accel tcg -cpu max -smp 1 -m 256M -M microvm,acpi=on,memory-backend=ram0 \
            -global virtio-mmio.force-legacy=false -object memory-backend-file,id=ram0,size=256M,mem-path=/proc/self/fd/{},share=on \
            -add-fd fd={},set=1 -chardev file,id=ser,path=/dev/fdset/1,append=on -serial chardev:ser \
            -device virtio-serial-device -chardev socket,id=ag,fd={} -device virtserialport,chardev=ag,name=agent.0 \
            -netdev tap,id=n0,fd={} -device virtio-net-device,netdev=n0,mac=02:d0:00:00:00:10 \
            -chardev socket,id=qmp,fd={},server=on,wait=off -mon chardev=qmp,mode=control \
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", fds[1], fds[4], fds[3], fds[0], fds[2]);
        if let Some(s) = state {
            fds.push(s.as_raw_fd());
            line += &format!(" -S -global migration.send-configuration=off -incoming fd:{}", s.as_raw_fd());
        }
        let mut c = Command::new("qemu-system-x86_64");
        c.args(line.split_whitespace()).stdin(Stdio::null()).stderr(File::create(format!("{DIR}/err")).unwrap());
        if state.is_none() { c.args(boot.splitn(6, ' ')); }
        let give = move || unsafe { // SAFETY: only async-signal-safe calls between fork and exec
            fds.iter().for_each(|fd| { libc::fcntl(*fd, libc::F_SETFD, 0); });
            let bad = libc::setgroups(0, std::ptr::null()) | libc::setresgid(UID, UID, UID) | libc::setresuid(UID, UID, UID) | libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if bad == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        unsafe { c.pre_exec(give) }; // SAFETY: see the closure
        let child = c.spawn().unwrap();
        let mut vm = Vm { child, qmp: BufReader::new(UnixStream::connect(&path).unwrap()), agent };
        drop(listener); // ours would hide QEMU's death from the greeting read
        vm.qmp.read_line(&mut String::new()).unwrap();
        vm.ask("qmp_capabilities", "{}", None);
        if state.is_none() { assert!(vm.agent(b"").contains("up")); }
        vm
    }
    /// One QMP command, with a descriptor by SCM_RIGHTS where one is given. Events in between are skipped.
    pub fn ask(&mut self, cmd: &str, args: &str, fd: Option<i32>) {
        let text = format!("{{\"execute\":\"{cmd}\",\"arguments\":{args}}}");
        unsafe { // SAFETY: the message refers to locals that outlive sendmsg
            let mut iov = libc::iovec { iov_base: text.as_ptr() as *mut _, iov_len: text.len() };
            let mut ctl = [20, libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32, fd.unwrap_or(0) as u64]; // a cmsghdr and its descriptor
            let mut m: libc::msghdr = std::mem::zeroed();
            (m.msg_iov, m.msg_iovlen) = (&mut iov, 1);
            if fd.is_some() { (m.msg_control, m.msg_controllen) = (ctl.as_mut_ptr().cast(), 24); }
            assert_eq!(libc::sendmsg(self.qmp.get_ref().as_raw_fd(), &m, 0), text.len() as isize);
        }
        loop {
            let mut l = String::new();
            assert!(self.qmp.read_line(&mut l).unwrap() > 0, "QEMU gone in {cmd}");
            assert!(!l.contains("\"error\""), "{cmd}: {l}");
            if l.contains("\"return\"") { return; }
        }
    }
    /// Device state without RAM into a passed descriptor, then the process goes.
    pub fn save_and_quit(mut self) {
        let f = File::create(format!("{DIR}/state")).unwrap(); // truncates: QEMU's own O_TRUNC does nothing on an fdset
        self.ask("stop", "{}", None);
        self.ask("add-fd", "{\"fdset-id\":9}", Some(f.as_raw_fd()));
        self.ask("xen-save-devices-state", "{\"filename\":\"/dev/fdset/9\",\"live\":false}", None);
        self.ask("quit", "{}", None);
        self.child.wait().unwrap();
    }
    pub fn agent(&mut self, ask: &[u8]) -> String {
        let (mut out, mut b) = (vec![], [0; 65536]);
        self.agent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        self.agent.write_all(ask).unwrap();
        while !out.ends_with(b"END\n") && !out.ends_with(b"up\n") {
            let n = self.agent.read(&mut b).expect("agent");
            assert!(n > 0);
            out.extend_from_slice(&b[..n]);
        }
        String::from_utf8_lossy(&out).into()
    }
    pub fn kill(mut self) { self.child.kill().unwrap(); self.child.wait().unwrap(); }
}

/// A tap in the calling thread's namespace, with vnet_hdr: the device state says so, and a load without it fails.
pub fn tap(name: &str) -> OwnedFd {
    let f = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
    let mut r = [0u8; 40];
    r[..name.len()].copy_from_slice(name.as_bytes());
    r[16..18].copy_from_slice(&0x5002u16.to_ne_bytes()); // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    assert_eq!(unsafe { libc::ioctl(f.as_raw_fd(), 0x4004_54ca, r.as_mut_ptr()) }, 0, "TUNSETIFF {name}"); // SAFETY: ifreq-sized buffer
    f.into()
}

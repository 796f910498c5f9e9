#!/usr/bin/env python3
"""What needs no guest: crash of the manager, late parkers, a tap that dies, the loop guard; with `memory`, kernel memory a sleeper.
The "guest" is whoever reads the tap. Run as root after `setup.sh up`; it enters st-host by itself."""
import ctypes, fcntl, os, select, signal, socket, struct, subprocess, sys, time

G4, G6, GMAC, P1MAC = "10.78.9.1", "fd78:0:0:9::1", "02:d0:00:00:00:11", "02:d0:00:00:00:fe"
PARK = ["app_solicit=1000000", "mcast_solicit=0", "ucast_solicit=0", "mcast_resolicit=0", "retrans_time_ms=1000", "unres_qlen_bytes=67108864"]

def sh(c, check=True): return subprocess.run(c, shell=True, check=check, capture_output=True, text=True).stdout
def tap(name, persist=False):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
    if persist: fcntl.ioctl(fd, 0x400454CB, 1)
    return fd
def up(name, qlen=10000): sh(f"sysctl -qw net.ipv6.conf.{name}.addr_gen_mode=1; ip link set {name} address 02:d0:00:00:00:01 txqueuelen {qlen} multicast off up")
def neigh(verb, dev, mac=None):
    for g in (G4, G6): sh(f"ip neigh {verb} {g} dev {dev}" + (f" lladdr {mac} nud permanent" if mac else ""), check=verb != "del")
def routes(verb, dev, metric): sh(f"ip route {verb} {G4} dev {dev} metric {metric}; ip -6 route {verb} {G6} dev {dev} metric {metric}")
def frames(fd, wait=0.3):
    """UDP frames that reach the guest within `wait` seconds."""
    n, end = 0, time.time() + wait
    while (left := end - time.time()) > 0:
        if select.select([fd], [], [], left)[0]:
            f = os.read(fd, 4096)[10:]
            n += (f[12:14] == b"\x08\x00" and f[23] == 17) or (f[12:14] == b"\x86\xdd" and f[20] == 17)
    return n
def ask(n):
    """n datagrams of each family from the client's namespace."""
    sh(f"""ip netns exec st-cli python3 -c "
import socket
for f, a in ((2, '{G4}'), (10, '{G6}')):
    s = socket.socket(f, 2)
    for i in range({n}): s.sendto(b'x' * 32, (a, 9000))
" """)
def bell():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.bind((0, 4)); return s
def ring(s, wait):
    """Seconds until RTM_GETNEIGH, or None."""
    t = time.time()
    while select.select([s], [], [], max(0, t + wait - time.time()))[0]:
        if struct.unpack_from("H", s.recv(4096), 4)[0] == 30: return time.time() - t
def wake_shared():
    fd = tap("dm9"); up("dm9"); neigh("replace", "dm9", GMAC); routes("add", "dm9", 10)
    neigh("replace", "p0", P1MAC); neigh("del", "p0")
    return fd

def crash(mode, other):
    """The manager is killed by SIGKILL with 50+50 datagrams parked. How many reach the guest after its successor's wake?"""
    fd = None
    if mode == "tap":
        fd = tap("dm9", True); up("dm9"); routes("add", "dm9", 10)
        for f in ("ipv4", "ipv6"):
            for s in PARK: sh(f"sysctl -qw net.{f}.neigh.dm9.{s}")
    else: routes("add", "p0", 2048)
    pid = os.fork()
    if not pid: signal.pause()
    if fd is not None and not other: os.close(fd)
    ask(50); os.kill(pid, 9); os.waitpid(pid, 0); time.sleep(0.2)
    if mode == "tap":
        if not other: fd = tap("dm9", True)
        neigh("replace", "dm9", GMAC); n = frames(fd); fcntl.ioctl(fd, 0x400454CB, 0)
    else: fd = wake_shared(); n = frames(fd); routes("del", "p0", 2048)
    os.close(fd); return n

def late():
    """A datagram that chose p0 before the move and arrives there after the release."""
    routes("add", "p0", 2048); fd = wake_shared(); b = bell(); p0 = socket.if_nametoindex("p0"); rang, got = [], 0
    for f, a, level, opt in [(2, G4, 0, 50), (10, G6, 41, 76)] * 10:
        s = socket.socket(f, 2); s.setsockopt(level, opt, struct.pack("!i", p0)); s.sendto(b"late", (a, 9000))  # *_UNICAST_IF
        rang.append(ring(b, 2)); early = frames(fd, 0.02)
        neigh("replace", "p0", P1MAC); neigh("del", "p0"); got += frames(fd, 0.05) if not early else 0
        while ring(b, 0) is not None: pass
    os.close(fd); time.sleep(.1)
    # The tap died with its VMM (nobody shut anything): the parking routes are what is left.
    ask(5); crashed = ring(b, 2); fd = wake_shared(); n = frames(fd)
    os.close(fd); routes("del", "p0", 2048)
    print(f"late parker: rang {sum(r is not None for r in rang)}/20 within {max(r or 9 for r in rang) * 1e3:.2f} ms, second release delivered {got}/20")
    print(f"tap gone without a shut: knock {crashed is not None}, delivered after the next wake {n}/10")

def loop():
    """A release before the tap's route: does the guard stop p1 -> p0?"""
    routes("add", "p0", 2048); ask(5); neigh("replace", "p0", P1MAC); time.sleep(.1)
    print("released before the route:", sh("nft list chain inet t c_fwd | grep -o 'p0.*counter packets [0-9]*' | head -1").strip())
    neigh("del", "p0"); routes("del", "p0", 2048)

def memory():
    """Slab and friends before and after; MemFree beside it moves with whatever else the machine does."""
    keys = ("Slab", "Percpu", "VmallocUsed", "KernelStack", "PageTables")
    def used():
        time.sleep(1); m = {l.split(":")[0]: int(l.split()[1]) for l in open("/proc/meminfo")}
        return sum(m[k] for k in keys), m["MemFree"]
    def show(what, n, a, b): print(f"memory {what} x{n}: {(b[0] - a[0]) / n:.2f} KiB each ({'+'.join(keys)}), MemFree {(b[1] - a[1]) / n:+.2f} KiB each", flush=True)
    def batch(f, lines): subprocess.run(f"ip {f} -batch -", shell=True, check=True, text=True, input="\n".join(lines) + "\n")
    for qlen, noqueue, park in ((1000, 0, 0), (10000, 0, 0), (10000, 0, 1), (10000, 1, 0), (8192, 1, 0), (1000, 1, 0)):
        a = used(); fds = [tap(f"m{i}") for i in range(200)]
        for i in range(200):
            up(f"m{i}", qlen)
            if noqueue: sh(f"tc qdisc replace dev m{i} root noqueue")
            if park: sh("sysctl -qw " + " ".join(f"net.{f}.neigh.m{i}.{s}" for s in PARK for f in ("ipv4", "ipv6")))
        batch("", [f"route add 10.77.{i}.1 dev m{i}" for i in range(200)]); batch("-6", [f"route add fd77::{i:x} dev m{i}" for i in range(200)])
        show(f"tap+2 routes, txqueuelen {qlen}{', noqueue' * noqueue}{', parking sysctls' * park}", 200, a, used())
        for fd in fds: os.close(fd)
        time.sleep(1)
    for n in (200, 10000):
        a = used()
        batch("", [f"route add 10.77.{i >> 8}.{i & 255} dev p0 metric 2048" for i in range(n)]); batch("-6", [f"route add fd77::{i:x} dev p0 metric 2048" for i in range(n)])
        b = used(); show("2 routes on p0", n, a, b)
        if n == 200:
            s4, s6 = socket.socket(2, 2), socket.socket(10, 2)
            for i in range(n): s4.sendto(b"x", (f"10.77.0.{i}", 9)); s6.sendto(b"x", (f"fd77::{i:x}", 9))
            show("... and one datagram parked in each family", n, b, used())
        sh("ip route flush dev p0; ip -6 route flush dev p0; ip neigh flush dev p0", check=False)
        time.sleep(1)

ctypes.CDLL(None).setns(os.open("/run/netns/st-host", os.O_RDONLY), 0)
if "memory" in sys.argv: memory()
else:
    print("load", open("/proc/loadavg").read().strip())
    for mode, other in [("tap", False), ("tap", True), ("shared", False)]:
        print(f"manager killed, {mode}{', another holder of the tap' if other else ''}: delivered of 100:", [crash(mode, other) for _ in range(5)], flush=True)
    late(); loop()

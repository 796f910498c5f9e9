/* Guest init of the parking spike: PID 1 of a microvm. Loads virtio, gives eth0 its host addresses, then serves
 * TCP echo on 7000, UDP echo on 7001, and an agent on virtio-serial ("s" answers with the guest's TCP/UDP counters).
 * Addresses come from the kernel command line: dm4=10.78.1.10 dm6=fd78:0:0:1::10 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *MODS[] = {"virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover",
                             "virtio_net", "virtio_console", "virtio-rng"};

static void put(const char *path, const char *v) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, v, strlen(v)) < 0) printf("init: %s: %m\n", path);
    if (fd >= 0) close(fd);
}

/* busybox cannot add a permanent neighbour; without one the guest would ask for its gateway on the wire. */
static void neigh(int af, const char *ip, int ifindex) {
    struct { struct nlmsghdr h; struct ndmsg n; char a[64]; } m = {0};
    unsigned char dst[16], mac[6] = {0x02, 0xd0, 0, 0, 0, 1};
    int len = af == AF_INET ? 4 : 16;
    inet_pton(af, ip, dst);
    m.h.nlmsg_type = RTM_NEWNEIGH;
    m.h.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
    m.n.ndm_family = af; m.n.ndm_ifindex = ifindex; m.n.ndm_state = NUD_PERMANENT;
    struct rtattr *r = (void *)m.a;
    r->rta_type = NDA_DST; r->rta_len = RTA_LENGTH(len); memcpy(RTA_DATA(r), dst, len);
    r = (void *)(m.a + RTA_SPACE(len));
    r->rta_type = NDA_LLADDR; r->rta_len = RTA_LENGTH(6); memcpy(RTA_DATA(r), mac, 6);
    m.h.nlmsg_len = (char *)r + RTA_SPACE(6) - (char *)&m;
    int s = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE); char b[256];
    send(s, &m, m.h.nlmsg_len, 0);
    if (recv(s, b, sizeof b, 0) < 0 || ((struct nlmsgerr *)NLMSG_DATA((struct nlmsghdr *)b))->error)
        printf("init: neigh %s failed\n", ip);
    close(s);
}

static void arg(const char *line, const char *key, char *out) {
    const char *p = strstr(line, key);
    if (p) sscanf(p + strlen(key), "%63[^ \n]", out);
}

static int listen_on(int type, int port) {
    int s = socket(AF_INET6, type | SOCK_NONBLOCK, 0), one = 1, buf = 4 << 20;
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (type == SOCK_DGRAM) setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &buf, sizeof buf);
    if (bind(s, (void *)&a, sizeof a) || (type == SOCK_STREAM && listen(s, 4096))) printf("init: bind %d: %m\n", port);
    return s;
}

int main(void) {
    char path[96], line[2048] = {0}, ip4[64] = "10.78.1.10", ip6[64] = "fd78:0:0:1::10", cmd[512];
    static char buf[65536];
    mount("proc", "/proc", "proc", 0, 0); mount("sys", "/sys", "sysfs", 0, 0); mount("dev", "/dev", "devtmpfs", 0, 0);
    for (unsigned i = 0; i < sizeof MODS / sizeof *MODS; i++) {
        sprintf(path, "/mod/%s.ko", MODS[i]);
        int fd = open(path, O_RDONLY);
        if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST) printf("init: %s: %m\n", MODS[i]);
        close(fd);
    }
    int fd = open("/proc/cmdline", O_RDONLY); (void)!read(fd, line, sizeof line - 1); close(fd);
    arg(line, "dm4=", ip4); arg(line, "dm6=", ip6);
    for (int i = 0; i < 200 && !if_nametoindex("eth0"); i++) usleep(10000);
    /* Silence: nothing on the wire that we did not ask for. */
    put("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1"); put("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
    put("/proc/sys/net/ipv6/conf/eth0/router_solicitations", "0"); put("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
    put("/proc/sys/net/ipv4/icmp_ratelimit", "0");
    snprintf(cmd, sizeof cmd, "ip() { /bin/busybox ip \"$@\"; }; ip link set lo up; ip addr add %s/32 dev eth0; ip -6 addr add %s/128 dev eth0;"
             "ip link set eth0 up; ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1 src %s;"
             "ip -6 route add default via fe80::1 dev eth0 src %s", ip4, ip6, ip4, ip6);
    if (!fork()) { execv("/bin/busybox", (char *[]){"sh", "-c", cmd, 0}); _exit(1); }
    wait(0);
    neigh(AF_INET, "169.254.1.1", if_nametoindex("eth0")); neigh(AF_INET6, "fe80::1", if_nametoindex("eth0"));
    struct rlimit rl = {1 << 20, 1 << 20}; setrlimit(RLIMIT_NOFILE, &rl);
    int tcp = listen_on(SOCK_STREAM, 7000), udp = listen_on(SOCK_DGRAM, 7001), ep = epoll_create1(0);
    /* The node appears after a round trip with the host; its first number is the device's place on the virtio bus. */
    int agent = -1;
    for (int i = 0; i < 3000 && agent < 0; i++) {
        sprintf(path, "/dev/vport%dp1", i % 10);
        agent = open(path, O_RDWR | O_NONBLOCK);
        if (agent < 0 && i % 10 == 9) usleep(10000);
    }
    struct epoll_event ev = {.events = EPOLLIN}, evs[64];
    ev.data.fd = tcp; epoll_ctl(ep, EPOLL_CTL_ADD, tcp, &ev);
    ev.data.fd = udp; epoll_ctl(ep, EPOLL_CTL_ADD, udp, &ev);
    ev.data.fd = agent; if (epoll_ctl(ep, EPOLL_CTL_ADD, agent, &ev)) printf("init: agent: %m\n");
    printf("init: serving\n"); (void)!write(agent, "up\n", 3);
    for (;;) {
        int n = epoll_wait(ep, evs, 64, -1);
        for (int i = 0; i < n; i++) {
            int s = evs[i].data.fd; ssize_t k;
            if (s == tcp) {
                int c;
                while ((c = accept4(tcp, 0, 0, SOCK_NONBLOCK)) >= 0) { ev.data.fd = c; epoll_ctl(ep, EPOLL_CTL_ADD, c, &ev); }
            } else if (s == udp) {
                struct sockaddr_in6 a; socklen_t l = sizeof a;
                while ((k = recvfrom(udp, buf, sizeof buf, 0, (void *)&a, &l)) >= 0) { sendto(udp, buf, k, 0, (void *)&a, l); l = sizeof a; }
            } else if (s == agent) {
                k = read(agent, buf, sizeof buf);
                if (k <= 0) { usleep(1000); continue; } /* host side not connected */
                if (buf[0] == 'p') { (void)!write(agent, "pong\n", 5); continue; }
                k = 0;
                for (int f = 0; f < 3; f++) {
                    int q = open((const char *[]){"/proc/net/snmp", "/proc/net/netstat", "/proc/net/snmp6"}[f], O_RDONLY);
                    ssize_t r; while ((r = read(q, buf + k, sizeof buf - k)) > 0) k += r;
                    close(q);
                }
                memcpy(buf + k, "END\n", 4); (void)!write(agent, buf, k + 4);
            } else {
                k = read(s, buf, sizeof buf);
                if (k > 0) (void)!write(s, buf, k); else if (k == 0 || errno != EAGAIN) close(s);
            }
        }
    }
}

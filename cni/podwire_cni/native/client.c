/* podwire-cni: the CNI plugin binary. It carries a call to the node's wiring agent and the agent's
 * answer back.
 *
 * CNI spec 1.1.0, section 2 ("Execution Protocol"): CNI_* variables and a network configuration on
 * stdin; a JSON result or error on stdout. The agent may live in another mount namespace, so the
 * namespaces travel as descriptors (SCM_RIGHTS).
 *
 * Request  (host byte order): "PWC1", u32 flags, u32 netns_errno, u32 env_len, u32 stdin_len; the
 * CNI_* variables as "KEY=value\0"...; stdin. Descriptors: our network namespace, then the pod's if
 * flag 1 is set. Answer:  u32 exit status, u32 length, text for stdout. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "json.h"

#define DEFAULT_SOCKET "/run/podwire/cni.sock"
#define STANDALONE "podwire-cni-standalone"
#define MAX_INPUT (4u << 20)
#define SIOCGSKNS 0x894c /* <linux/sockios.h>, which musl's headers are without */
#define ANSWER_SECONDS                                                                             \
	120 /* kubelet gives a sandbox 4 minutes; an agent that hangs this long is as good as dead \
	     */
#define WAIT_SECONDS 30 /* of ADD and DEL for an agent that is being replaced */
#define READY_SECONDS 60 /* STATUS answers well that long after the agent was ready */
#define WAIT_TURN_US 20000
#define POD_NETNS 1u
#define TRY_AGAIN_LATER 11 /* CNI spec, "Error": well-known codes */
#define INVALID_ENVIRONMENT 4
#define IO_FAILURE 5
#define PLUGIN_NOT_AVAILABLE 50

extern char **environ;

static char version[16] = "1.1.0";

static int fail(int code, const char *msg, const char *details)
{
	fputs("{\"cniVersion\":", stdout);
	print_json_string(version);
	printf(",\"code\":%d,\"msg\":", code);
	print_json_string(msg);
	fputs(",\"details\":", stdout);
	print_json_string(details);
	fputs("}\n", stdout);
	return 1;
}

/* ---- input, output ---- */

static char *read_all(int fd, size_t *len)
{
	static char first[16384]; /* enough for nearly all */
	size_t size = sizeof first;
	char *buf = first;
	*len = 0;
	while (buf) {
		ssize_t n = read(fd, buf + *len, size - *len - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return NULL;
		if (n == 0) {
			buf[*len] = 0;
			return buf;
		}
		*len += (size_t)n;
		if (*len > MAX_INPUT) {
			errno = EFBIG;
			return NULL;
		}
		if (*len + 1 >= size) {
			char *more = realloc(buf == first ? NULL : buf, size *= 2);
			if (more && buf == first)
				memcpy(more, first, *len);
			buf = more;
		}
	}
	return NULL;
}

static int write_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t done = send(fd, p, n, MSG_NOSIGNAL);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return -1;
		p += done;
		n -= (size_t)done;
	}
	return 0;
}

static int read_exactly(int fd, char *p, size_t n)
{
	while (n) {
		ssize_t done = read(fd, p, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done == 0)
			errno = ECONNRESET;
		if (done <= 0)
			return -1;
		p += done;
		n -= (size_t)done;
	}
	return 0;
}

static int dial(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	struct timeval limit = {.tv_sec = ANSWER_SECONDS};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
		int saved = errno;
		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

static int send_request(int sock, const char *input, size_t input_len)
{
	uint32_t head[5];
	memcpy(head, "PWC1", 4);
	head[1] = head[2] = head[3] = 0;
	head[4] = (uint32_t)input_len;
	int fds[2];
	size_t count = 1;
	/* The socket's namespace is ours. /proc would have to make a directory for this process
	 * first, and unmake it. */
	fds[0] = ioctl(sock, SIOCGSKNS);
	if (fds[0] < 0)
		fds[0] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (fds[0] < 0)
		return -1;
	const char *netns = getenv("CNI_NETNS");
	if (netns && *netns) {
		fds[1] = open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fds[1] < 0) {
			head[2] = (uint32_t)errno;
		} else {
			head[1] |= POD_NETNS;
			count = 2;
		}
	}
	size_t total = sizeof head + input_len;
	for (char **e = environ; *e; e++)
		if (strncmp(*e, "CNI_", 4) == 0)
			head[3] += (uint32_t)strlen(*e) + 1;
	total += head[3];
	static char room[16384];
	char *message = total <= sizeof room ? room : malloc(total), *p = message;
	if (!message)
		return -1;
	memcpy(p, head, sizeof head);
	p += sizeof head;
	for (char **e = environ; *e; e++)
		if (strncmp(*e, "CNI_", 4) == 0)
			p = stpcpy(p, *e) + 1;
	memcpy(p, input, input_len);

	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof fds)];
	} control;

	memset(&control, 0, sizeof control);
	struct iovec part = {message, total};
	struct msghdr msg = {.msg_iov = &part,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = CMSG_SPACE(count * sizeof *fds)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof *fds);
	memcpy(CMSG_DATA(c), fds, count * sizeof *fds);
	ssize_t sent;
	do
		sent = sendmsg(sock, &msg, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -1
			: write_all(sock, message + sent,
				    total - (size_t)sent); /* what was allocated goes with the
							      process */
}

/* The answer's exit status, or -1 with errno. Nothing is printed unless the answer came whole. */
static int relay_answer(int sock)
{
	uint32_t head[2];
	if (read_exactly(sock, (char *)head, sizeof head) != 0)
		return -1;
	static char room[4096];
	char *text = head[1] <= sizeof room ? room : malloc(head[1]);
	if (!text || read_exactly(sock, text, head[1]) != 0)
		return -1;
	for (size_t done = 0; done < head[1];) {
		ssize_t n = write(1, text + done, head[1] - done);
		if (n < 0 && errno != EINTR)
			return 1;
		done += n > 0 ? (size_t)n : 0;
	}
	return (int)head[0];
}

/* ---- without an agent ---- */

static int run_standalone(const char *json, size_t len)
{
	char plugin[512];
	if (!string_key(json, "pythonPlugin", plugin, sizeof plugin))
		strcpy(plugin, STANDALONE);
	int copy = memfd_create(
		"podwire-cni",
		0); /* a pipe would block where the configuration outgrows its buffer */
	if (copy < 0 || write(copy, json, len) != (ssize_t)len || lseek(copy, 0, SEEK_SET) != 0 ||
	    dup2(copy, 0) < 0)
		return fail(IO_FAILURE,
			    "podwire-cni: cannot hand the configuration to the standalone plugin",
			    strerror(errno));
	execlp(plugin, plugin, (char *)NULL);
	char msg[700];
	snprintf(msg, sizeof msg, "podwire-cni: cannot run the standalone plugin %s: %s", plugin,
		 strerror(errno));
	return fail(
		TRY_AGAIN_LATER, msg,
		"install podwire, or set \"pythonPlugin\" in the network configuration to its path");
}

static int agent_down(const char *command, const char *path, const char *what, int error)
{
	char msg[400], details[400];
	snprintf(msg, sizeof msg, "podwire-cni: the node's wiring agent %s at %s: %s", what, path,
		 strerror(error));
	snprintf(
		details, sizeof details,
		"start the agent of this node (podwire agent, or podwire wiring), or set PODWIRE_CNI_SOCKET or the key "
		"\"socket\" of the network configuration to its socket; then the runtime tries %s again",
		command);
	return fail(strcmp(command, "STATUS") == 0 ? PLUGIN_NOT_AVAILABLE : TRY_AGAIN_LATER, msg,
		    details);
}

/* The pod's namespace is gone, and its interface with it: what the agent keeps of it (lease,
 * hostPorts) it frees when it starts. A runtime must not be kept from deleting a dead pod. */
static int nothing_to_delete(const char *command)
{
	const char *netns = getenv("CNI_NETNS");
	return strcmp(command, "DEL") == 0 &&
	       (!netns || !*netns || (access(netns, F_OK) != 0 && errno == ENOENT));
}

/* ---- an agent that is being replaced ---- */

/* Seconds of a clock that the agent's process has too, and that goes on while the machine sleeps.
 */
static double clock_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* How long to wait for an agent. CHECK and GC are repeated anyway, and STATUS has its own answer.
 */
static double patience(const char *command)
{
	const char *given = getenv("PODWIRE_CNI_WAIT");
	if (strcmp(command, "ADD") != 0 && strcmp(command, "DEL") != 0)
		return 0;
	return given && *given ? strtod(given, NULL) : WAIT_SECONDS;
}

/* Whether nf_tables has the IPv4 table of this name in our network namespace. The constants are
 * those of <linux/netfilter/nf_tables.h>: NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES and
 * NFT_MSG_GETTABLE, NFTA_TABLE_NAME, NFPROTO_IPV4. */
static int has_table(const char *name)
{
	struct {
		uint32_t length;
		uint16_t type, flags;
		uint32_t sequence, port;
		uint8_t family, version;
		uint16_t resource;
		uint16_t size, kind;
		char text[32];
	} ask = {.type = 10 << 8 | 1, .flags = 1, .family = 2, .kind = 1};

	union {
		uint32_t words[1024];

		struct {
			uint32_t length;
			uint16_t type;
		} head;
	} told;

	size_t text = strlen(name) + 1;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 12);
	if (fd < 0 || text > sizeof ask.text)
		return 0;
	memcpy(ask.text, name, text);
	ask.size = (uint16_t)(4 + text);
	ask.length = 24 + (uint32_t)((text + 3) & ~(size_t)3);
	struct timeval limit = {.tv_sec = 1};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	ssize_t got = send(fd, &ask, ask.length, 0) < 0 ? -1 : recv(fd, &told, sizeof told, 0);
	close(fd);
	return got >= 16 && told.head.type == 10 << 8; /* NFT_MSG_NEWTABLE, no error */
}

static int is_up(const char *link)
{
	struct ifreq request = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	snprintf(request.ifr_name, IFNAMSIZ, "%s", link);
	int found =
		fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_UP);
	if (fd >= 0)
		close(fd);
	return found;
}

/* Whether the node is as an agent left it that was ready a moment ago. The agent writes the file
 * cni/ready beside its socket (cni/readiness.py). A node would be marked NotReady otherwise, and
 * get a taint, whenever its agent is replaced. */
static int stands(const char *path)
{
	char file[256], leases[256], bridge[IFNAMSIZ] = "", conflist[256] = "";
	const char *slash = strrchr(path, '/');
	int folder = slash ? (int)(slash - path) : 0;
	double at = 0, age;
	snprintf(file, sizeof file, "%.*s/cni/ready", folder, path);
	snprintf(leases, sizeof leases, "%.*s/cni/leases", folder, path);
	FILE *ready = fopen(file, "re");
	if (!ready)
		return 0;
	int words = fscanf(ready, "podwire-ready/1 at=%lf bridge=%15s conflist=%255[^\n]", &at,
			   bridge, conflist);
	fclose(ready);
	age = clock_now() - at;
	return words == 3 && age >= 0 && age <= READY_SECONDS && access(conflist, F_OK) == 0 &&
	       access(leases, F_OK) == 0 && is_up(bridge) && has_table("podwire-cni");
}

/* ---- called as "loopback", the plugin that containerd and CRI-O run besides that of the network
 * ---- */

static int set_lo_up(const char *netns)
{
	struct ifreq lo = {.ifr_name = "lo"};
	int fd = open(netns, O_RDONLY | O_CLOEXEC), sock = -1, done = -1;
	if (fd >= 0 && setns(fd, CLONE_NEWNET) == 0 &&
	    (sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) >= 0 &&
	    ioctl(sock, SIOCGIFFLAGS, &lo) == 0) {
		lo.ifr_flags |= IFF_UP;
		done = ioctl(sock, SIOCSIFFLAGS, &lo);
	}
	int saved = errno;
	if (fd >= 0)
		close(fd);
	if (sock >= 0)
		close(sock);
	errno = saved;
	return done;
}

static int loopback(const char *command, const char *json)
{
	const char *netns = getenv("CNI_NETNS"), *previous = find_key(json, "prevResult");
	if (strcmp(command, "ADD") != 0 && strcmp(command, "CHECK") != 0)
		return 0; /* lo goes with its namespace */
	if (!netns || !*netns)
		return fail(INVALID_ENVIRONMENT, "loopback: CNI_NETNS is not set",
			    "the container runtime sets it");
	if (set_lo_up(netns) != 0)
		return fail(IO_FAILURE, "loopback: cannot set lo up in CNI_NETNS", strerror(errno));
	if (strcmp(command, "CHECK") == 0)
		return 0;
	if (previous && *previous == '{') {
		printf("%.*s\n", (int)extent(previous), previous);
		return 0;
	}
	int old = version[0] == '0'; /* until 1.0.0 an address says its IP version */
	fputs("{\"cniVersion\":", stdout);
	print_json_string(version);
	fputs(",\"interfaces\":[{\"name\":\"lo\",\"mac\":\"00:00:00:00:00:00\",\"sandbox\":",
	      stdout);
	print_json_string(netns);
	printf("}],\"ips\":[{%s\"address\":\"127.0.0.1/8\",\"interface\":0},{%s\"address\":\"::1/128\",\"interface\":0}]}\n",
	       old ? "\"version\":\"4\"," : "", old ? "\"version\":\"6\"," : "");
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc > 1 && strcmp(argv[1], "--install") == 0) {
		execvp("podwire-cni-standalone", argv);
		fprintf(stderr,
			"podwire-cni: cannot run podwire-cni-standalone: %s; put the directory where podwire is installed "
			"in PATH\n",
			strerror(errno));
		return 1;
	}
	const char *command = getenv("CNI_COMMAND");
	if (!command || !*command)
		return fail(
			INVALID_ENVIRONMENT, "podwire-cni: CNI_COMMAND is not set",
			"a container runtime runs this program with CNI_COMMAND=ADD, DEL, CHECK, GC, STATUS or VERSION");
	size_t len;
	char *json = read_all(0, &len);
	if (!json)
		return fail(IO_FAILURE,
			    "podwire-cni: cannot read the network configuration from stdin",
			    strerror(errno));
	string_key(json, "cniVersion", version, sizeof version);
	if (strcmp(command, "VERSION") == 0) {
		fputs("{\"cniVersion\":", stdout);
		print_json_string(version);
		puts(",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}");
		return 0;
	}
	const char *base = strrchr(argv[0], '/');
	if (strcmp(base ? base + 1 : argv[0], "loopback") == 0) {
		int status = loopback(command, json);
		return fflush(stdout) == 0 ? status : 1;
	}
	char from_conf[sizeof((struct sockaddr_un *)0)->sun_path];
	const char *path = getenv("PODWIRE_CNI_SOCKET");
	if (!path || !*path)
		path = string_key(json, "socket", from_conf, sizeof from_conf) ? from_conf
									       : DEFAULT_SOCKET;
	double end = clock_now() + patience(command);
	int again = 1, saved = 0;
	const char *what = "does not listen";
	while (again) {
		int sock = dial(path);
		if (sock < 0) {
			saved = errno;
			if (true_key(json, "standalone"))
				return run_standalone(json, len);
			if (nothing_to_delete(command))
				return 0;
			again = saved == ENOENT || saved == ECONNREFUSED;
		} else if (send_request(sock, json, len) != 0) {
			saved = errno;
			what = "did not take the request";
			close(sock);
		} else {
			int status = relay_answer(sock);
			if (status >= 0)
				return fflush(stdout) == 0 ? status : 1;
			saved = errno;
			what = "did not answer";
			close(sock);
			/* what an ADD did before its agent died, only a DEL can undo */
			again = strcmp(command, "DEL") == 0 &&
				(saved == ECONNRESET || saved == EPIPE);
		}
		again = again && clock_now() < end;
		if (again)
			usleep(WAIT_TURN_US);
	}
	if (strcmp(command, "STATUS") == 0 && stands(path))
		return 0;
	return agent_down(command, path, what, saved);
}

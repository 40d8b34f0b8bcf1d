#!/usr/bin/env python3
"""The same durable work done by payswitch and by what one would use in its place.

A payment is two records, the intent and the outcome, each durable before its answer;
256 bytes each for the peers. N clients, each with one payment at a time. Every server is
started here, on loopback, in a temporary folder, with fsync on, and ended at the end. A
peer that is not installed is left out and named.

    cargo build --release
    benches/peers/peers.py [--clients 1,64] [--seconds 6] [--rounds 3] [--only postgres,etcd-3]

Python 3.9 or later and nothing else. The reservations stand in docs/BENCHMARKS.md.
"""

import argparse
import glob
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
CLOCK = os.sysconf("SC_CLK_TCK")
PROCESSES = 2  # of the Python client: as many as it can use of two cores


class Skip(Exception):
    """This peer cannot be measured here; why."""


def find(name, folders=()):
    path = shutil.which(name) or next((p for f in folders for p in glob.glob(f"{f}/{name}")), None)
    if path is None:
        raise Skip(f"{name} is not installed")
    return path


def free_ports(count):
    """Ports below those that Linux hands out."""
    found, port = [], 18_000 + os.getpid() % 800 * 10
    while len(found) < count:
        port += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                found.append(port)
            except OSError:
                pass
    return found


def cpu_of(pids):
    """CPU seconds of processes and their children that have ended or run."""
    total, parents, of = 0, {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rsplit(") ", 1)[1].split()
            except (OSError, IndexError):
                continue
            parents[int(entry)] = int(fields[1])
            of[int(entry)] = sum(int(field) for field in fields[11:15])
    for pid, ticks in of.items():
        at = pid
        while at in parents and at not in pids:
            at = parents[at]
        total += ticks if at in pids else 0
    return total / CLOCK


class Servers:
    """Processes of one peer and their folder."""

    def __init__(self, keep):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="peers-", dir=keep))
        os.chmod(self.folder, 0o755)
        self.running = []

    def start(self, command, **options):
        log = open(self.folder / f"out-{len(self.running)}", "wb")
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True, **options)
        self.running.append(process)
        return process

    def wait(self, what, holds, seconds=30):
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until or any(p.poll() is not None for p in self.running):
                tails = [path.read_text(errors="replace")[-300:] for path in self.folder.glob("out-*")]
                raise Skip(f"{what} does not come up: {' '.join(' '.join(tails).split())[-300:]}")
            time.sleep(0.05)

    def pids(self):
        return {process.pid for process in self.running}

    def end(self):
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self.running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def percentile(sorted_values, share):
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


def figures(latencies_us, seconds):
    if not latencies_us:
        raise Skip("no payment ended")
    ordered = sorted(latencies_us)
    return {"rate": len(ordered) / seconds, "p50": percentile(ordered, 0.5) / 1e3,
            "p99": percentile(ordered, 0.99) / 1e3}


def python_clients(kind, ports, clients, seconds, run):
    """The load of client.py, in as many processes as there are clients for."""
    shares = [clients // PROCESSES + (at < clients % PROCESSES) for at in range(PROCESSES)]
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "client.py"), kind, ",".join(map(str, ports)), str(share),
             str(seconds), f"r{run}p{at}"],
            stdout=subprocess.PIPE, text=True)
        for at, share in enumerate(shares) if share
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise Skip("a client failed")
    parsed = [json.loads(output) for output in outputs]
    return figures([us for one in parsed for us in one["us"]], parsed[0]["seconds"])


class Disk:
    """The floor: two appends of 512 bytes, each with fdatasync, by one process."""

    name, nodes, version = "disk alone: write, fdatasync", 1, ""

    def start(self, servers):
        self.file = os.open(servers.folder / "floor", os.O_CREAT | os.O_WRONLY)
        os.write(self.file, bytes(32 << 20))
        os.fsync(self.file)
        os.lseek(self.file, 0, os.SEEK_SET)

    def run(self, servers, clients, seconds, run):
        if clients > 1:
            return None
        latencies, until = [], time.monotonic() + 1
        while time.monotonic() < until:
            began = time.monotonic()
            for _ in range(2):
                os.write(self.file, b"x" * 512)
                os.fdatasync(self.file)
            latencies.append(round((time.monotonic() - began) * 1e6))
        os.close(self.file)
        return figures(latencies, 1)


class Postgres:
    """One server, synchronous_commit=on: INSERT of the intent, UPDATE with the outcome."""

    name, nodes = "PostgreSQL", 1

    def start(self, servers):
        folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
        tools = {name: find(name, folders) for name in ("initdb", "postgres", "psql", "pgbench")}
        self.pgbench, data, (self.port,) = tools["pgbench"], servers.folder / "data", free_ports(1)
        data.mkdir()
        options = {}
        if os.geteuid() == 0:
            # It refuses to run as root.
            options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(data, "nobody")
        made = subprocess.run([tools["initdb"], "-D", data, "-A", "trust", "-U", "bench", "--no-instructions"],
                              capture_output=True, text=True, cwd="/", **options)
        if made.returncode:
            raise Skip("initdb: " + made.stderr.strip()[-200:])
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
                    "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
                    "shared_buffers": "1GB", "max_wal_size": "8GB", "max_connections": 300}
        command = [tools["postgres"], "-D", data]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        servers.start(command, cwd="/", **options)
        servers.wait("PostgreSQL", lambda: listens(self.port))
        self.url = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "bench", "postgres"]
        table = ("CREATE TABLE payments (id bigint, client int, amount bigint, status text, intent text, "
                 "outcome text, PRIMARY KEY (client, id)) WITH (fillfactor = 45); CREATE SEQUENCE number;")
        asked = lambda: subprocess.run([tools["psql"], *self.url[:-1], "-d", "postgres", "-qc", table],
                                       capture_output=True).returncode == 0
        servers.wait("PostgreSQL", asked)
        self.version = subprocess.run([tools["postgres"], "--version"], capture_output=True,
                                      text=True).stdout.split()[2]
        self.script = servers.folder / "payment.sql"
        self.script.write_text(
            "\\set amount random(1, 100000)\n"
            "SELECT nextval('number') AS n \\gset\n"
            f"INSERT INTO payments VALUES (:n, :client_id, :amount, 'OPEN', repeat('i', {200}), NULL);\n"
            f"UPDATE payments SET status = 'PAID', outcome = repeat('o', {200}) "
            "WHERE client = :client_id AND id = :n;\n")

    def run(self, servers, clients, seconds, run):
        prefix = servers.folder / f"log{run}"
        command = [self.pgbench, "-n", "-M", "prepared", "-c", clients, "-j", min(2, clients), "-T",
                   int(seconds), "-f", self.script, "-l", "--log-prefix", prefix, *self.url]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            raise Skip("pgbench: " + done.stderr.strip()[-200:])
        rows = [line.split() for path in glob.glob(f"{prefix}*") for line in open(path)]
        ends = [int(row[4]) + int(row[5]) / 1e6 for row in rows]
        first, last = min(ends) + seconds / 5, max(ends)
        return figures([int(row[2]) for row, end in zip(rows, ends) if end >= first], last - first)


class Redis:
    """One server, appendfsync always. redis-benchmark: a payment is two SETs."""

    name, nodes = "Redis, appendfsync always", 1

    def start(self, servers):
        server, self.benchmark = find("redis-server"), find("redis-benchmark")
        (self.port,) = free_ports(1)
        servers.start([server, "--port", self.port, "--bind", "127.0.0.1", "--dir", servers.folder,
                       "--save", "", "--appendonly", "yes", "--appendfsync", "always"])
        servers.wait("Redis", lambda: listens(self.port))
        told = subprocess.run([server, "--version"], capture_output=True, text=True).stdout
        self.version = told.split("v=")[1].split()[0]

    def run(self, servers, clients, seconds, run):
        def sets(count):
            done = subprocess.run(
                [self.benchmark, "-p", str(self.port), "-t", "set", "-d", "256", "-r", "100000000",
                 "-c", str(clients), "-n", str(count), "--csv"], capture_output=True, text=True)
            return [float(cell.strip('"')) for cell in done.stdout.splitlines()[1].split(",")[1:]]

        warm = sets(max(2_000, 50 * clients))
        rate, _, _, p50, _, p99, _ = sets(int(warm[0] * seconds))
        # Two after the other; the sum of two p99 is more than the p99 of the sum.
        return {"rate": rate / 2, "p50": 2 * p50, "p99": 2 * p99}


class Etcd:
    """Put of a new key, on a majority's disks; clients spread over the nodes."""

    def __init__(self, nodes):
        self.nodes, self.name = nodes, "etcd"

    def start(self, servers):
        etcd, ports = find("etcd"), free_ports(2 * self.nodes)
        self.ports, peers = ports[: self.nodes], ports[self.nodes :]
        cluster = ",".join(f"n{at}=http://127.0.0.1:{port}" for at, port in enumerate(peers))
        for at, (client, peer) in enumerate(zip(self.ports, peers)):
            urls = [f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"]
            servers.start([etcd, "--name", f"n{at}", "--data-dir", servers.folder / f"n{at}",
                           "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
                           "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
                           "--initial-cluster", cluster, "--quota-backend-bytes", 8 << 30,
                           "--logger", "zap", "--log-level", "error"],
                          env={**os.environ, "ETCD_UNSUPPORTED_ARCH": ""})
        servers.wait("etcd", lambda: all(listens(port) for port in self.ports))
        self.version = subprocess.run([etcd, "--version"], capture_output=True, text=True).stdout.split()[2]
        time.sleep(2)

    def run(self, servers, clients, seconds, run):
        return python_clients("etcd", self.ports, clients, seconds, run)


class Nats:
    """A JetStream file stream with sync_interval always, on a majority when replicated."""

    def __init__(self, nodes):
        self.nodes, self.name = nodes, "NATS JetStream, sync always"

    def start(self, servers):
        nats, ports = find("nats-server", ["/usr/sbin"]), free_ports(2 * self.nodes)
        self.version = subprocess.run([nats, "--version"], capture_output=True,
                                      text=True).stdout.split()[-1].lstrip("v")
        self.ports, routes = ports[: self.nodes], ports[self.nodes :]
        for at, (client, route) in enumerate(zip(self.ports, routes)):
            others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
            cluster = f'cluster {{ name: c, listen: "127.0.0.1:{route}", routes: [{others}] }}'
            config = servers.folder / f"n{at}.conf"
            config.write_text(
                f'server_name: n{at}\nlisten: "127.0.0.1:{client}"\n'
                f'jetstream {{ store_dir: "{servers.folder}/n{at}", sync_interval: always }}\n'
                + (cluster if self.nodes > 1 else ""))
            tried = subprocess.run([nats, "-t", "-c", config], capture_output=True, text=True)
            if tried.returncode:
                raise Skip(f"version {self.version} cannot sync before it answers "
                           "(sync_interval: always, from 2.10 on)")
            servers.start([nats, "-c", config])
        servers.wait("NATS", lambda: all(listens(port) for port in self.ports))
        stream = json.dumps({"name": "PAY", "subjects": ["pay.>"], "storage": "file",
                             "num_replicas": self.nodes, "retention": "limits"}).encode()
        servers.wait("the stream", lambda: self.ask(b"$JS.API.STREAM.CREATE.PAY", stream))
        time.sleep(1)

    def ask(self, subject, body):
        with socket.create_connection(("127.0.0.1", self.ports[0])) as connection:
            connection.settimeout(5)
            connection.sendall(b"CONNECT {\"verbose\":false}\r\nSUB _INBOX.a 1\r\n"
                               b"PUB %s _INBOX.a %d\r\n%s\r\n" % (subject, len(body), body))
            data = b""
            try:
                while b'"type"' not in data or not data.endswith(b"\r\n"):
                    data += connection.recv(65_536)
            except OSError:
                return False
        return b'"error"' not in data

    def run(self, servers, clients, seconds, run):
        return python_clients("nats", self.ports, clients, seconds, run)


class Payswitch:
    """The switch with its simulated channel in a process of its own, `loadgen run --closed N`."""

    def __init__(self, nodes, binaries):
        self.nodes, self.name, self.binaries = nodes, "payswitch", binaries

    def start(self, servers):
        switch, self.loadgen = self.binaries / "payswitch", self.binaries / "loadgen"
        for binary in (switch, self.loadgen):
            if not binary.exists():
                raise Skip(f"{binary} is not built: cargo build --release")
        self.folder, base = servers.folder / "d", free_ports(1)[0] // 100 * 100 + 100
        made = subprocess.run([switch, "init", "--dir", self.folder, "--merchants", "200", "--sites",
                               str(self.nodes), "--port-base", str(base)], capture_output=True, text=True)
        if made.returncode:
            raise Skip("payswitch init: " + made.stderr.strip())
        self.channel = servers.start([self.loadgen, "channel", "--config", self.folder / "channel.toml"])
        for site in range(1, self.nodes + 1):
            servers.start([switch, "serve", "--config", self.folder / f"site-{site}.toml"])
        self.version = subprocess.run([switch, "--version"], capture_output=True, text=True).stdout.split()[1]
        time.sleep(3)

    def run(self, servers, clients, seconds, run):
        out = servers.folder / "run.json"
        # Few streams keep a batch together; 1 client needs no more than one connection a site.
        done = subprocess.run([self.loadgen, "run", "--config", self.folder / "gateway.toml", "--closed",
                               str(clients), "--duration", str(seconds), "--warmup", str(seconds / 5),
                               "--json", out], capture_output=True, text=True)
        if not out.exists():
            raise Skip("loadgen: " + done.stderr.strip()[-300:])
        told = json.loads(out.read_text())
        if told["ok"] != told["sent"]:
            print(f"# payswitch: {told['sent'] - told['ok']} of {told['sent']} payments not paid", file=sys.stderr)
        # What was not paid is infinitely slow.
        p50, p99 = (float("inf") if us is None else us / 1e3
                    for us in (told["latency_us"]["p50"], told["latency_us"]["p99"]))
        return {"rate": told["achieved_rate"], "p50": p50, "p99": p99}


def measure(peer, clients, seconds, keep):
    servers = Servers(keep)
    rows = []
    try:
        peer.start(servers)
        for run, count in enumerate(clients):
            before = cpu_of(servers.pids())
            told = peer.run(servers, count, seconds, run)
            if told is None:
                continue
            used = cpu_of(servers.pids()) - before
            # The load ran for the whole time, warm-up too.
            told["cpu_us"] = used / (told["rate"] * seconds) * 1e6
            rows.append({"peer": peer.name, "version": peer.version, "nodes": peer.nodes,
                         "clients": count, **told})
            print(f"# {peer.name} ({peer.nodes}), {count} clients: {told['rate']:.0f} payments/s",
                  file=sys.stderr)
    finally:
        servers.end()
    return rows


def medians(measured):
    """One row for each peer and number of clients, in the order in which they first came."""
    groups = {}
    for row in measured:
        groups.setdefault((row["peer"], row["nodes"], row["clients"]), []).append(row)
    rows = []
    for group in groups.values():
        middle = {key: statistics.median(row[key] for row in group) for key in ("rate", "p50", "p99", "cpu_us")}
        rates = [row["rate"] for row in group]
        rows.append({**group[0], **middle, "least": min(rates), "most": max(rates)})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,64", help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=6, help="length of each run, a fifth of it warm-up")
    parser.add_argument("--rounds", type=int, default=3,
                        help="every peer so often, in turn; the median is told, with the extremes of the rate")
    parser.add_argument("--only", default="", help="of disk, payswitch-1, payswitch-3, postgres, redis, etcd-1, etcd-3, nats-1, nats-3")
    parser.add_argument("--binaries", type=pathlib.Path, default=HERE.parent.parent / "target/release")
    parser.add_argument("--folder", help="where the temporary folders are made: on the disk to be measured")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here, too")
    args = parser.parse_args()
    clients = [int(count) for count in args.clients.split(",")]
    if not all(1 <= count <= 250 for count in clients) or not 2 <= args.seconds <= 600 or not 1 <= args.rounds <= 99:
        parser.error("--clients: 1 to 250 each, --seconds: 2 to 600, --rounds: 1 to 99")
    peers = {"disk": Disk(), "payswitch-1": Payswitch(1, args.binaries), "postgres": Postgres(), "redis": Redis(),
             "etcd-1": Etcd(1), "nats-1": Nats(1), "payswitch-3": Payswitch(3, args.binaries),
             "etcd-3": Etcd(3), "nats-3": Nats(3)}
    wanted = [name for name in args.only.split(",") if name] or list(peers)
    unknown = [name for name in wanted if name not in peers]
    if unknown:
        parser.error(f"--only: no {', '.join(unknown)}")
    measured, skipped = [], {}
    for _ in range(args.rounds):
        for name in wanted:
            if name not in skipped:
                try:
                    measured += measure(peers[name], clients, args.seconds, args.folder)
                except Skip as reason:
                    skipped[name] = f"{name}: skipped: {reason}"
    rows = medians(measured)
    ours = {(row["nodes"], row["clients"]): row for row in rows if row["peer"] == "payswitch"}
    print("| what | nodes | clients | payments/s | p50 ms | p99 ms | server CPU us per payment | payswitch is |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        own = ours.get((row["nodes"], row["clients"]))
        ratio = f"{own['rate'] / row['rate']:.1f}x" if own and own is not row and row["peer"] != Disk.name else "-"
        rates = f"{row['rate']:,.0f} ({row['least']:,.0f}-{row['most']:,.0f})"
        print(f"| {row['peer']} {row['version']} | {row['nodes']} | {row['clients']} | {rates} "
              f"| {row['p50']:.2f} | {row['p99']:.2f} | {row['cpu_us']:.0f} | {ratio} |")
    print("\n".join(skipped.values()))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "measured": measured, "skipped": skipped}, indent=2) + "\n")
    return 0 if rows else 3


if __name__ == "__main__":
    sys.exit(main())

//! A whole deployment on loopback for the system tests: real binaries, real
//! sockets, real files, all ended and removed when the test ends.
//!
//! Knows the product only from outside: its command lines, files and ports.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub mod cluster;
pub mod faults;
pub mod gateway;
pub mod http;

use faults::Faults;

/// Longest wait for a process to become ready.
const READY_MAX: Duration = Duration::from_secs(60);

/// The folder of the built binaries, which are built first when they are not
/// there or are older than their sources.
pub fn binaries() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        // target/PROFILE/deps/it-HASH: the binaries lie two levels up.
        let exe = std::env::current_exe().expect("the test knows its own path");
        let dir = exe.parent().and_then(Path::parent).expect("a target folder").to_owned();
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "switch", "-p", "loadgen", "--bins"]);
        if dir.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        let built = build.status().expect("cargo runs");
        assert!(built.success(), "the binaries do not build");
        dir
    })
}

/// First port of a hundred of its own for each deployment, below those of the generator's own
/// deployments and those that the system hands out; those that a deployment uses are free.
fn port_base() -> u16 {
    const HUNDREDS: u32 = 100;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(37);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = 10_000 + (start.wrapping_add(step) % HUNDREDS) as u16 * 100;
        let mut used = (base..base + 50).chain([base + CHANNEL_PORT]);
        let free = used.all(|port| {
            UdpSocket::bind(("127.0.0.1", port)).is_ok()
                && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
        });
        if free {
            return base;
        }
    }
}

/// Where `payswitch init` places the channel, from the first port on.
const CHANNEL_PORT: u16 = 90;

/// A child process that never outlives its test.
pub struct Process {
    child: Child,
    name: &'static str,
    output: PathBuf,
}

impl Process {
    fn spawn(name: &'static str, mut command: Command, output: PathBuf) -> Self {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&output)
            .expect("the output file opens");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { child, name, output }
    }

    /// Everything it printed so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// kill -9, and waits for its end.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Fails only when it has already ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// SIGTERM, then the exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait(Duration::from_secs(90))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent =
            Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(started.elapsed() < bound, "{} does not end:\n{}", self.name, self.printed());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sites (one, unless a [`cluster::Cluster`] is asked for) with one native
/// channel, in a temporary folder. What names no site is about the first.
pub struct Deployment {
    dir: tempfile::TempDir,
    base: u16,
    sites: u16,
    has_channel: AtomicBool,
    has_faults: AtomicBool,
}

impl Deployment {
    /// `payswitch init` with `merchants` demo merchants.
    pub fn init(merchants: u32) -> Self {
        Self::init_in(tempfile::tempdir().expect("a temporary folder"), merchants, 1, &[])
    }

    fn init_in(dir: tempfile::TempDir, merchants: u32, sites: u16, more: &[&str]) -> Self {
        let base = port_base();
        let (has_channel, has_faults) = Default::default();
        let deployment = Self { dir, base, sites, has_channel, has_faults };
        let path = deployment.path().to_str().expect("a UTF-8 path");
        let (merchants, sites_text) = (merchants.to_string(), sites.to_string());
        let base = base.to_string();
        let asked = ["--dir", path, "--merchants", &merchants, "--port-base", &base];
        let sites_asked = ["--sites", &sites_text];
        let args = [&["init"][..], &asked, &sites_asked, more].concat();
        let output = deployment.payswitch(&args);
        assert!(output.status.success(), "{}", text(&output));
        // A test machine that stands still for a moment is not an overload and no dead gateway.
        for site in 1..=sites {
            let delay =
                if sites == 1 { "# queue_delay_max_ms = 20 " } else { "queue_delay_max_ms = 100 " };
            deployment.edit_site(site, delay, "queue_delay_max_ms = 10000 ");
            deployment.edit_site(site, "# delay_target_ms = 0 ", "delay_target_ms = 10000 ");
            // A test may wait for something on the thread of its connection.
            deployment.edit_site(site, "# idle_timeout_ms = 3000", "idle_timeout_ms = 60000");
        }
        deployment
    }

    /// As [`Self::init`], for several sites, of which those behind the first
    /// `voters` are no members yet.
    pub fn init_sites(sites: u16, voters: u16, merchants: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let deployment = Self::init_in(dir, merchants, sites, &[]);
        for site in 1..=sites {
            for later in voters + 1..=sites {
                let entry = format!("id = {later}\n");
                deployment.edit_site(site, &entry, &format!("{entry}voter = false\n"));
            }
        }
        deployment
    }

    /// The configuration of a site.
    pub fn site_file(&self, site: u16) -> PathBuf {
        self.file(&format!("site-{site}.toml"))
    }

    /// Runs `payswitch` with something to read.
    pub fn payswitch_typed(&self, args: &[&str], typed: &str) -> Output {
        use std::io::Write;
        let mut child = Command::new(binaries().join("payswitch"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("payswitch starts");
        let mut input = child.stdin.take().expect("a pipe");
        // It may end before it has read anything.
        drop(input.write_all(typed.as_bytes()));
        drop(input);
        child.wait_with_output().expect("payswitch ends")
    }

    /// The deployment's folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of the worker's log.
    pub fn log_dir(&self) -> PathBuf {
        self.path().join("data/site-1/worker-0")
    }

    /// A file of the deployment.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Its parsed site configuration.
    pub fn config(&self) -> toml::Table {
        self.site_config(1)
    }

    /// The parsed configuration of a site.
    pub fn site_config(&self, site: u16) -> toml::Table {
        std::fs::read_to_string(self.site_file(site))
            .expect("a configuration")
            .parse()
            .expect("TOML")
    }

    /// Replaces one line of the site configuration.
    pub fn edit(&self, from: &str, to: &str) {
        self.edit_site(1, from, to);
    }

    /// Replaces one line of a site's configuration.
    pub fn edit_site(&self, site: u16, from: &str, to: &str) {
        let path = self.site_file(site);
        let text = std::fs::read_to_string(&path).expect("a configuration");
        assert!(text.contains(from), "no {from:?} in the configuration");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("writable");
    }

    /// An address of the configuration, for example `("gateway", "listen")`.
    pub fn address(&self, section: &str, key: &str) -> String {
        self.config()[section][key].as_str().expect("an address").to_owned()
    }

    /// First port of the deployment.
    pub fn port_base(&self) -> u16 {
        self.base
    }

    /// Runs `payswitch` to its end.
    pub fn payswitch(&self, args: &[&str]) -> Output {
        run(&binaries().join("payswitch"), args)
    }

    /// Runs `loadgen` to its end.
    pub fn loadgen(&self, args: &[&str]) -> Output {
        run(&binaries().join("loadgen"), args)
    }

    /// The channel was ended on purpose: a switch need not wait for its link.
    pub fn without_channel(&self) {
        self.has_channel.store(false, Ordering::Relaxed);
    }

    /// The smallest segments, of which 255 batches fill one.
    pub fn small_segments(&self) {
        self.small_segments_of(1);
    }

    /// As [`Self::small_segments`], of a site.
    pub fn small_segments_of(&self, site: u16) {
        self.edit_site(site, "# segment_mib = 64", "segment_mib = 1");
        self.edit_site(site, "# batch_max_kib = 4096", "batch_max_kib = 64");
        self.edit_site(site, "# block_max_bytes = 1048576", "block_max_bytes = 32768");
    }

    /// Switches started from now on obey the plan of the returned faults. Only
    /// the blocking writer of the log goes through the C library.
    pub fn with_faults(&self) -> Faults {
        self.edit("# backend = \"auto\"", "backend = \"blocking\"");
        self.has_faults.store(true, Ordering::Relaxed);
        Faults::new(&self.fault_plan())
    }

    fn fault_plan(&self) -> PathBuf {
        self.file("fault.plan")
    }

    /// Starts the switch and waits until it is ready, and its channel's link is
    /// up when one runs.
    pub fn serve(&self) -> Process {
        let mut process = self.start_switch();
        let started = Instant::now();
        let admin = self.address("admin", "listen");
        loop {
            if http::get(&admin, "/ready").is_ok_and(|reply| reply.status == 200)
                && (!self.has_channel.load(Ordering::Relaxed) || self.channel_is_up())
            {
                let faulty =
                    !self.has_faults.load(Ordering::Relaxed) || Faults::loaded(&self.fault_plan());
                assert!(faulty, "the fault library was not preloaded:\n{}", process.printed());
                return process;
            }
            assert!(
                process.runs() && started.elapsed() < READY_MAX,
                "the switch is not ready:\n{}",
                process.printed()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the switch without waiting.
    pub fn start_switch(&self) -> Process {
        self.start_site(1)
    }

    /// Starts a site without waiting.
    pub fn start_site(&self, site: u16) -> Process {
        let mut command = Command::new(binaries().join("payswitch"));
        command.args(["serve", "--config"]).arg(self.site_file(site));
        if self.has_faults.load(Ordering::Relaxed) {
            let dir = self.path().canonicalize().expect("the deployment's folder exists");
            command
                .env("LD_PRELOAD", faults::library())
                .env("PAYSWITCH_FAULT_PLAN", self.fault_plan())
                .env("PAYSWITCH_FAULT_DIR", dir.join("data/site-1/worker-0"));
        }
        let output = if site == 1 { "switch.out".into() } else { format!("switch-{site}.out") };
        Process::spawn("payswitch serve", command, self.file(&output))
    }

    /// What the running switch says under `/status`.
    ///
    /// # Errors
    /// Connection and format errors.
    pub fn status(&self) -> std::io::Result<serde_json::Value> {
        self.site_status(1)
    }

    /// What a running site says under `/status`.
    ///
    /// # Errors
    /// Connection and format errors.
    pub fn site_status(&self, site: u16) -> std::io::Result<serde_json::Value> {
        let config = self.site_config(site);
        let admin = config["admin"]["listen"].as_str().expect("an address");
        let reply = http::get(admin, "/status")?;
        Ok(serde_json::from_str(&reply.body)?)
    }

    /// The running switch's value of a metric without labels but the site's.
    ///
    /// # Panics
    /// When there is no such metric.
    pub fn metric(&self, name: &str) -> u64 {
        self.site_metric(1, name)
    }

    /// As [`Self::metric`], of a time, seconds.
    ///
    /// # Panics
    /// When there is no such metric.
    pub fn seconds(&self, name: &str) -> f64 {
        self.sample(1, name, "site=\"1\"").parse().expect("a number")
    }

    /// As [`Self::metric`], of a site.
    ///
    /// # Panics
    /// When there is no such metric.
    pub fn site_metric(&self, site: u16, name: &str) -> u64 {
        whole(&self.sample(site, name, &format!("site=\"{site}\"")))
    }

    /// As [`Self::metric`], with one more label, for example `op="pay"`.
    ///
    /// # Panics
    /// When there is no such metric.
    pub fn labelled_metric(&self, name: &str, label: &str) -> u64 {
        whole(&self.sample(1, name, &format!("site=\"1\",{label}")))
    }

    fn sample(&self, site: u16, name: &str, labels: &str) -> String {
        let config = self.site_config(site);
        let admin = config["admin"]["listen"].as_str().expect("an address");
        let page = http::get(admin, "/metrics").expect("the admin port answers").body;
        let prefix = format!("payswitch_{name}{{{labels}}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
        value.unwrap_or_else(|| panic!("no metric {name} in:\n{page}")).to_owned()
    }

    /// Whether the switch's link to its channel stands: a site is ready without.
    pub fn channel_is_up(&self) -> bool {
        self.status().is_ok_and(|status| status["channels"][0]["up"] == true)
    }

    /// Starts `loadgen` with its output in a file of the deployment.
    pub fn start_loadgen(&self, output: &str, args: &[&str]) -> Process {
        let mut command = Command::new(binaries().join("loadgen"));
        command.args(args);
        Process::spawn("loadgen", command, self.file(output))
    }

    /// Starts what answers everything at once in the switch's place, each connection
    /// with `window` requests in flight.
    pub fn null(&self, window: u32) -> Process {
        let config = self.site_file(1);
        let config = config.to_str().expect("a UTF-8 path");
        let args = ["null", "--config", config, "--window", &window.to_string()];
        // What an earlier one said is not said of this one.
        drop(std::fs::remove_file(self.file("null.out")));
        let mut process = self.start_loadgen("null.out", &args);
        wait_until("the null server is ready", || {
            assert!(process.runs(), "{}", process.printed());
            process.printed().contains("ready")
        });
        process
    }

    /// Starts the simulated channel with extra arguments and waits until it is ready.
    pub fn channel(&self, args: &[&str]) -> Process {
        let mut command = Command::new(binaries().join("loadgen"));
        command.args(["channel", "--config"]).arg(self.file("channel.toml")).args(args);
        let output = self.file("channel.out");
        self.has_channel.store(true, Ordering::Relaxed);
        drop(std::fs::remove_file(&output));
        let mut process = Process::spawn("loadgen channel", command, output);
        let started = Instant::now();
        while !process.printed().contains("ready") {
            let ended = process.child.try_wait().expect("the child can be waited for");
            assert!(
                ended.is_none() && started.elapsed() < READY_MAX,
                "the channel is not ready:\n{}",
                process.printed()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        process
    }
}

/// Asks again and again until `holds`, for at most a minute: the machine may
/// be busy with other tests.
///
/// # Panics
/// When it does not come true.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn whole(value: &str) -> u64 {
    value.parse().expect("a whole number")
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()))
}

/// Both streams of a finished process.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

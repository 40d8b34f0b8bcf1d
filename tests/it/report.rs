//! The page of a result in a real browser, and the view of a running load on a
//! pseudo terminal.

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use tests::Deployment;

/// What must stay a text, wherever it stands.
const HOSTILE: &str = "</title></svg><script>document.title='taken'</script><img src=x>";

/// The browser, when there is one.
fn browser() -> Option<&'static str> {
    let runs = |name: &&str| {
        let told = Command::new(name).arg("--version").output();
        told.is_ok_and(|told| told.status.success())
    };
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(runs);
    if found.is_none() {
        assert!(
            std::env::var_os("PAYSWITCH_REQUIRE_BROWSER").is_none(),
            "a browser is demanded here but there is no chromium"
        );
        eprintln!("SKIPPED: no chromium; on Debian: apt-get install chromium");
    }
    found
}

/// Loads a page and returns its document and what it told the console.
fn load(browser: &str, dir: &Path, page: &Path) -> (String, Vec<String>) {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
        // Nobody is found: what the browser itself looks for stays here as well.
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", tests::text(&output));
    let errors = String::from_utf8_lossy(&output.stderr);
    let console = errors.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned);
    (String::from_utf8_lossy(&output.stdout).into_owned(), console.collect())
}

fn report(args: &[&str]) -> Output {
    Command::new(tests::binaries().join("loadgen")).arg("report").args(args).output().unwrap()
}

/// Eighty intervals; in the thirtieth a site is killed.
fn timeline() -> Value {
    let hit = |at: usize| (30..34).contains(&at);
    let column = |value: &dyn Fn(usize) -> f64| (0..80).map(value).collect::<Vec<f64>>();
    let site = |site: usize| {
        column(&|at| match (30..60).contains(&at) {
            true if site == 2 => 0.0,
            true => 50.0,
            false => 33.0,
        })
    };
    json!({
        "interval_ms": 100,
        "planned": column(&|_| 100.0), "sent": column(&|_| 100.0),
        "ok": column(&|at| if hit(at) { 66.0 } else { 100.0 }),
        "by_site": {"1": site(1), "2": site(2), "3": site(3)},
        "failed": {"NO_LEADER": column(&|at| if hit(at) { 2.0 } else { 0.0 }), HOSTILE: column(&|_| 1.0)},
        "p50_us": column(&|_| 1_600.0), "p90_us": column(&|at| if hit(at) { 90_000.0 } else { 3_000.0 }),
        "p99_us": column(&|at| if hit(at) { 140_000.0 } else { 9_000.0 }),
        "max_us": column(&|at| if hit(at) { 150_000.0 } else { 12_000.0 }),
        "never": column(&|_| 0.0), "in_flight": column(&|_| 5.0), "waiting": column(&|_| 0.0),
        "late_p99_us": column(&|_| 130.0), "late_max_us": column(&|_| 260.0),
    })
}

fn drill() -> Value {
    json!({
        "drill": "kill-site", "about": "kill -9 of a site, and its return", "version": "0.1.0",
        "command": format!("loadgen drill {HOSTILE}"), "sites": 3, "load_rate": 1_000.0, "passed": true,
        "machine": {"cpu": HOSTILE, "cores": 2, "kernel": "6.1.0", "system": "Linux"},
        "unavailability": {"p50": 91.0, "p99": 120.0, "max": 120.0, "count": 4},
        "errors_by_code": {"NO_LEADER": 8},
        "latency_us": {"before": {"p50": 1_600, "count": 9}, "during": {"p99": 140_000, "count": 9}, "after": {}},
        "distribution": {"before": [[0.0, 900], [0.5, 1_600], [0.99, 9_000]], "during": [[0.5, 1_700], [0.99, null]]},
        "audit": {"checked": {"payments": 6_400}, "violation_count": 0},
        "targets": [{"target": "unavailable p50 <= 100 ms", "met": true, "measured": "91.0 ms"}],
        "repetitions": [{
            "victims": [2], "leaders_before": [1, 2, 3, 2], "timeline": timeline(),
            "unavailability_ms": [{"shard": 1, "ms": 91.0}, {"shard": 3, "ms": 120.0}],
            "marks": [{"at_ms": 3_000, "until_ms": 5_200, "text": HOSTILE}],
            "windows": [{"shard": 1, "from_ms": 3_001.0, "until_ms": 3_092.0},
                        {"shard": 3, "from_ms": 3_002.0, "until_ms": 3_122.0}],
        }],
    })
}

#[test]
fn a_page_is_whole_in_a_browser_silent_and_asks_for_nothing() {
    let Some(browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (json, page) = (dir.path().join("drill.json"), dir.path().join("drill.html"));
    std::fs::write(&json, drill().to_string()).unwrap();
    let made = report(&[json.to_str().unwrap(), "--out", page.to_str().unwrap()]);
    assert!(made.status.success(), "{}", tests::text(&made));

    let html = std::fs::read_to_string(&page).unwrap();
    let (document, console) = load(browser, dir.path(), &page);
    assert_eq!(console, Vec::<String>::new(), "a page has nothing to say to the console");
    assert!(document.contains("<title>Drill: kill-site</title>"), "{}", &document[..500]);
    assert_eq!(document.matches("<svg").count(), html.matches("<svg").count());
    assert!(document.matches("<svg").count() >= 8, "{}", document.matches("<svg").count());
    for part in
        ["Throughput", "Who answered", "The takeover, close up", "91 ms", "120 ms", "all 1 met"]
    {
        assert!(document.contains(part), "{part}");
    }
    for taken in ["<script", "<img", "taken</title>"] {
        assert!(!document.contains(taken), "{taken}");
    }

    // The same page with a picture from elsewhere: the console would have told.
    let asking = dir.path().join("asking.html");
    let picture = "<img src=\"http://127.0.0.1:9/x.png\"></main>";
    std::fs::write(&asking, html.replace("</main>", picture)).unwrap();
    let (_, console) = load(browser, dir.path(), &asking);
    assert!(console.iter().any(|line| line.contains("127.0.0.1:9")), "{console:?}");
}

#[test]
fn a_page_needs_results_that_it_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let (json, out) = (dir.path().join("x.json"), dir.path().join("x.html"));
    let (json, out) = (json.to_str().unwrap(), out.to_str().unwrap());
    for (text, told) in [("{", "cannot read"), ("{\"steps\": []}", "neither a run nor a drill")] {
        std::fs::write(json, text).unwrap();
        let made = report(&[json, "--out", out]);
        assert_eq!(made.status.code(), Some(2), "{}", tests::text(&made));
        assert!(tests::text(&made).contains(told), "{}", tests::text(&made));
    }
    std::fs::write(json, drill().to_string()).unwrap();
    let made = report(&[json, "--out", "/nowhere/x.html"]);
    assert_eq!(made.status.code(), Some(3), "{}", tests::text(&made));
}

#[test]
fn a_load_shows_itself_on_a_terminal_and_in_lines_elsewhere() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    let run = format!(
        "{} run --config {} --rate 200 --duration 3 --warmup 0",
        tests::binaries().join("loadgen").display(),
        deployment.file("gateway.toml").display()
    );
    let on_terminal = |colours: bool| {
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &run, "/dev/null"]);
        script.env("TERM", "xterm").env_remove("NO_COLOR");
        if !colours {
            script.env("NO_COLOR", "1");
        }
        let output = script.output().unwrap();
        assert!(output.status.success(), "{}", tests::text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = on_terminal(true);
    for part in ["\x1b[K", "\x1b[1m", "of 3 s", "from plan", "generator late p99"] {
        assert!(shown.contains(part), "{part:?} in {shown:?}");
    }
    assert!(!shown.contains("\x1b[?"), "it changes no mode of the terminal: {shown:?}");
    let plain = on_terminal(false);
    assert!(plain.contains("\x1b[K") && !plain.contains("\x1b[1m"), "{plain:?}");
    let output = Command::new("sh").args(["-c", &run]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("   1 s  sent ") && !text.contains('\x1b'), "{text:?}");
}

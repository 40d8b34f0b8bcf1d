//! The generator under bad input and bad luck: told to stop in any phase, killed,
//! on a full disk, against a server that stands still.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::{Deployment, Process, wait_until};

/// Longer than any pause of a busy machine.
const WITHIN: Duration = Duration::from_secs(120);
/// The run says nothing.
const INVALID: i32 = 5;
const ENVIRONMENT: i32 = 3;

fn gateway(deployment: &Deployment) -> String {
    deployment.file("gateway.toml").to_str().unwrap().to_owned()
}

/// Starts a run that writes `run.json`.
fn start_run(deployment: &Deployment, more: &[&str]) -> Process {
    let (config, json) = (gateway(deployment), deployment.file("run.json"));
    let mut args = vec!["run", "--config", &config, "--json", json.to_str().unwrap()];
    args.extend(more);
    deployment.start_loadgen("run.out", &args)
}

fn result(deployment: &Deployment) -> Value {
    serde_json::from_slice(&std::fs::read(deployment.file("run.json")).unwrap()).unwrap()
}

/// The lines in which it says why it ended; there must be one.
fn told(process: &Process) -> String {
    let printed = process.printed();
    let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with("loadgen: ")).collect();
    assert_eq!(lines.len(), 1, "{printed}");
    assert!(!printed.contains("panicked"), "{printed}");
    lines[0].to_owned()
}

#[test]
fn a_run_that_is_stopped_tells_what_was_done_so_far() {
    let deployment = Deployment::init(5);
    let mut run = start_run(&deployment, &["--rate", "10"]);
    wait_until("it connects", || run.printed().contains("requests/s"));
    // Its signals are listened to before it says so; nobody answers.
    run.signal("INT");
    assert_eq!(run.wait(WITHIN).code(), Some(INVALID));
    assert!(told(&run).contains("stopped during start-up"), "{}", told(&run));

    let _null = deployment.null(1_000);
    for (phase, warmup) in [("load", "0"), ("warm-up", "500")] {
        drop(std::fs::remove_file(deployment.file("run.out")));
        let args = ["--rate", "1000", "--duration", "600", "--warmup", warmup];
        let mut run = start_run(&deployment, &args);
        wait_until("it has sent", || run.printed().contains("1 s  sent"));
        run.signal("INT");
        assert_eq!(run.wait(WITHIN).code(), Some(INVALID), "{phase}");
        assert!(told(&run).contains("stopped after"), "{phase}: {}", told(&run));
        let result = result(&deployment);
        assert_eq!(result["interrupted"], true, "{phase}");
        if phase == "load" {
            // Over the time that it ran, not the one that was planned.
            let seconds = result["duration_s"].as_f64().unwrap();
            let sent = result["sent"].as_f64().unwrap();
            let offered = result["offered_rate"].as_f64().unwrap();
            assert!(seconds < 600.0 && sent > 0.0, "{seconds} {sent}");
            assert!((offered - sent / seconds).abs() < 1.0, "{offered} {sent} {seconds}");
        } else {
            assert_eq!((&result["sent"], &result["ok"]), (&0.into(), &0.into()), "{phase}");
        }
    }
}

#[test]
fn a_signal_before_the_first_connection_is_not_forgotten() {
    let deployment = Deployment::init(5);
    // A configuration that comes when it is written: the run listens to signals by then and
    // has not begun to connect.
    let config = deployment.file("gateway.toml");
    let text = std::fs::read(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    let mut run = start_run(&deployment, &["--rate", "10"]);
    let mut file = None;
    wait_until("it reads", || {
        let open = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&config);
        file = open.ok();
        file.is_some()
    });
    run.signal("INT");
    std::thread::sleep(Duration::from_millis(300));
    file.unwrap().write_all(&text).unwrap();
    assert_eq!(run.wait(WITHIN).code(), Some(INVALID), "{}", run.printed());
    assert!(told(&run).contains("stopped during start-up"), "{}", told(&run));
}

#[test]
fn a_second_signal_ends_the_wait_for_answers() {
    let deployment = Deployment::init(5);
    let null = deployment.null(1_000);
    let args = ["--rate", "500", "--duration", "600", "--warmup", "0", "--deadline", "500"];
    let mut run = start_run(&deployment, &args);
    wait_until("it has sent", || run.printed().contains("1 s  sent"));
    null.signal("STOP");
    let before = run.printed().lines().count();
    wait_until("answers are missing", || run.printed().lines().count() > before + 1);
    run.signal("INT");
    std::thread::sleep(Duration::from_millis(300));
    assert!(run.runs(), "it does not wait for its answers:\n{}", run.printed());
    run.signal("INT");
    assert_eq!(run.wait(WITHIN).code(), Some(INVALID));
    let result = result(&deployment);
    let number = |name: &str| result[name].as_u64().unwrap();
    assert!(number("unanswered") > 0, "{result}");
    assert_eq!(number("sent"), number("acked") + number("unanswered"));
    null.signal("CONT");
}

/// A run during which what answers stands still for a second. Where the machine stood still,
/// too, which another thread has seen, the generator was late and says nothing else: then once
/// more.
fn stalled(deployment: &Deployment, window: u32, args: &[&str]) -> (Process, i32) {
    for _ in 0..3 {
        drop(std::fs::remove_file(deployment.file("run.out")));
        let null = deployment.null(window);
        let mut run = start_run(deployment, args);
        wait_until("it has sent", || run.printed().contains("1 s  sent"));
        null.signal("STOP");
        std::thread::sleep(Duration::from_secs(1));
        null.signal("CONT");
        let code = run.wait(WITHIN).code().unwrap();
        if code != INVALID {
            return (run, code);
        }
        assert!(run.printed().contains("the generator was the bottleneck"), "{}", run.printed());
        let stalls = &result(deployment)["host"]["stalls"];
        assert!(stalls["over_5ms"].as_u64().unwrap() > 0, "by itself: {}", run.printed());
    }
    panic!("the generator was late three times");
}

#[test]
fn one_second_of_stall_shows_in_planned_latency_and_hides_in_raw() {
    let deployment = Deployment::init(5);
    // Few requests in flight: all others wait behind the stall, in the generator.
    let args = ["--rate", "1000", "--duration", "6", "--warmup", "0", "--connections", "1"];
    let (run, code) = stalled(&deployment, 2, &args);
    assert_eq!(code, 0, "{}", run.printed());
    let result = result(&deployment);
    assert_eq!((&result["ok"], &result["not_sent"]), (&6_000.into(), &0.into()));
    let p999 = |name: &str| result[name]["p999"].as_u64().unwrap();
    let (planned, raw) = (p999("latency_us"), p999("latency_raw_us"));
    assert!(planned >= 900_000, "p99.9 {planned} us from the planned time hides the stall");
    assert!(raw < planned / 2, "raw p99.9 {raw} us");
    // Whose fault it was is told: the generator was there in time.
    assert_eq!(result["generator"]["valid"], true, "{}", result["generator"]);
    assert!(result["lateness_us"]["p999"].as_u64().unwrap() >= 900_000);
    assert!(result["pace"].as_str().unwrap().starts_with("ticks of"));
}

#[test]
fn requests_that_were_shed_are_no_goal_met() {
    let deployment = Deployment::init(5);
    // What is not shed is answered at once; a second of stall sheds a sixth.
    let load = ["--rate", "1000", "--duration", "6", "--warmup", "0", "--in-flight", "40"];
    let goals = ["--goal", "p50=100s", "--goal", "p99=100s", "--deadline", "60"];
    let (run, code) = stalled(&deployment, 1_000, &[&load[..], &goals].concat());
    assert_eq!(code, 1, "{}", run.printed());
    assert!(told(&run).contains("goals missed: p99=100s"), "{}", told(&run));
    let result = result(&deployment);
    let number = |name: &str| result[name].as_u64().unwrap();
    assert!(number("not_sent") > 60, "{result}");
    assert_eq!(number("sent") + number("not_sent"), 6_000);
    assert!(result["latency_us"]["p99"].is_null() && result["latency_us"]["p50"].is_u64());
    assert_eq!(result["latency_us"]["count"], 6_000);
    // What was admitted was answered, every one.
    assert!(result["latency_admitted_us"]["max"].is_u64());
    assert_eq!(result["latency_admitted_us"]["count"].as_u64(), Some(number("sent")));
}

#[test]
fn the_generator_says_that_it_was_the_bottleneck() {
    let deployment = Deployment::init(5);
    let _null = deployment.null(60_000);
    let args = ["--rate", "500", "--duration", "4", "--warmup", "0"];
    let mut run = start_run(&deployment, &args);
    wait_until("it has sent", || run.printed().contains("1 s  sent"));
    // The generator itself stands still.
    run.signal("STOP");
    std::thread::sleep(Duration::from_secs(1));
    run.signal("CONT");
    assert_eq!(run.wait(WITHIN).code(), Some(INVALID), "{}", run.printed());
    let told = told(&run);
    assert!(told.contains("the generator was the bottleneck"), "{told}");
    for evidence in ["after they were due", "own p99 is", "CPU seconds", "stalls"] {
        assert!(told.contains(evidence), "{evidence}: {told}");
    }
    let result = result(&deployment);
    assert_eq!(result["generator"]["valid"], false);
    assert!(result["generator"]["own_lateness_us"]["p99"].as_u64().unwrap() > 500_000);
}

#[test]
fn a_seed_gives_the_same_plan_for_any_number_of_workers() {
    let deployment = Deployment::init(20);
    let _null = deployment.null(60_000);
    let told = [1, 3].map(|workers: u32| {
        drop(std::fs::remove_file(deployment.file("run.out")));
        let (workers, acks) = (workers.to_string(), deployment.file(&format!("acks-{workers}")));
        let args = ["--rate", "2000", "--duration", "2", "--warmup", "0", "--run-id", "77"];
        let load = ["--seed", "5", "--duplicates", "3%", "--mix", "pay=60,query=30,refund=10"];
        let more = ["--deadline", "60", "--workers", &workers, "--acks", acks.to_str().unwrap()];
        let mut run = start_run(&deployment, &[&args[..], &load, &more].concat());
        let status = run.wait(WITHIN).code();
        // A busy machine may be too slow for figures; the plan is the same.
        assert!(matches!(status, Some(0 | INVALID)), "{}", run.printed());
        let logs = std::fs::read_dir(acks).unwrap().count().to_string();
        assert_eq!(logs, workers, "each worker has its own log");
        result(&deployment)
    });
    let [one, three] = &told;
    let pays = |result: &Value| result["operations"]["pay"]["sent"].as_u64().unwrap();
    assert_eq!(pays(one), pays(three));
    for result in [one, three] {
        let number = |name: &str| result[name].as_u64().unwrap();
        assert_eq!(number("sent") + number("skipped"), 4_000, "{result}");
        assert_eq!(number("acked"), number("sent"));
        assert_eq!(result["latency_us"]["count"].as_u64(), Some(number("ok")));
        let planned = result["timeline"]["planned"].as_array().unwrap();
        assert_eq!(planned.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), 4_000);
    }
}

/// A deployment that `loadgen soak` starts in `dir`.
fn start_soak(deployment: &Deployment, dir: &Path) -> Process {
    let args = ["soak", "--kills", "1000", "--rate", "300", "--dir", dir.to_str().unwrap()];
    let process = deployment.start_loadgen("soak.out", &args);
    wait_until("a kill", || process.printed().contains("violations 0"));
    process
}

/// The processes that `parent` started and that run.
fn children(parent: u32) -> Vec<u32> {
    let fields = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned);
        Some((fields.next()?, fields.next()?))
    };
    let numbers = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|pid| {
            fields(*pid).is_some_and(|(state, of)| state != "Z" && of == parent.to_string())
        })
        .collect()
}

fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

#[test]
fn no_child_outlives_the_generator() {
    let deployment = Deployment::init(5);
    for signal in ["INT", "KILL"] {
        let folder = tempfile::tempdir().unwrap();
        drop(std::fs::remove_file(deployment.file("soak.out")));
        let mut soak = start_soak(&deployment, folder.path());
        let mut born = Vec::new();
        wait_until("switch and channel run", || {
            born = children(soak.id());
            born.len() >= 2
        });
        soak.signal(signal);
        let ended = soak.wait(WITHIN);
        wait_until("the children end", || !born.iter().any(|pid| runs(*pid)));
        if signal == "INT" {
            assert_eq!(ended.code(), Some(INVALID), "{}", soak.printed());
            assert!(told(&soak).contains("stopped"), "{}", told(&soak));
        }
    }
}

#[test]
fn a_demo_that_is_stopped_under_load_is_audited_and_summed_up() {
    let deployment = Deployment::init(5);
    let (json, page) = (deployment.file("run.json"), deployment.file("run.html"));
    for sites in ["1", "3"] {
        for file in ["run.out", "run.json", "run.html"] {
            drop(std::fs::remove_file(deployment.file(file)));
        }
        let args = ["demo", "--sites", sites, "--seconds", "30", "--rate", "500"];
        let files = ["--json", json.to_str().unwrap(), "--report", page.to_str().unwrap()];
        let mut demo = deployment.start_loadgen("run.out", &[&args[..], &files].concat());
        wait_until("it has sent", || demo.printed().contains("2 s  sent"));
        demo.signal("INT");
        assert_eq!(demo.wait(WITHIN).code(), Some(INVALID), "{}", demo.printed());
        assert!(told(&demo).contains("stopped"), "{}", told(&demo));
        let result = result(&deployment);
        assert_eq!(result["interrupted"], true, "{sites}");
        assert_eq!(result["audit"]["violation_count"], 0, "{sites}: {}", demo.printed());
        let payments = result["audit"]["checked"]["payments"].as_u64();
        assert!(payments.unwrap() > 100, "{sites}: {}", demo.printed());
        assert!(page.exists() && demo.printed().contains(": clean"), "{}", demo.printed());
    }
}

#[test]
fn a_soak_whose_switch_does_not_come_back_audits_what_was_done() {
    let deployment = Deployment::init(5);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("soak");
    let mut soak = start_soak(&deployment, &dir);
    let config = dir.join("site-1.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\nno such line").unwrap();
    assert_eq!(soak.wait(WITHIN).code(), Some(ENVIRONMENT), "{}", soak.printed());
    assert!(told(&soak).contains("is not ready"), "{}", told(&soak));
    let printed = soak.printed();
    assert!(printed.contains("it broke off: what was done until then is audited"), "{printed}");
    let audit = printed.lines().rfind(|line| line.starts_with("audit "));
    assert!(audit.is_some_and(|line| line.ends_with(": clean")), "{printed}");
}

#[test]
fn a_story_that_no_disk_has_room_for_is_refused_in_a_line() {
    let deployment = Deployment::init(5);
    let dir = deployment.file("story");
    for (story, more) in [
        (
            "drill",
            &["steady", "--rate", "400000", "--minutes", "1440", "--mix", "pay=1,query=0,refund=0"]
                [..],
        ),
        ("soak", &["--rate", "1000000", "--kills", "10000", "--sites", "5"]),
    ] {
        let args = [&[story][..], more, &["--dir", dir.to_str().unwrap()]].concat();
        let output = deployment.loadgen(&args);
        let printed = tests::text(&output);
        assert_eq!(output.status.code(), Some(ENVIRONMENT), "{printed}");
        assert!(printed.starts_with("loadgen: no room in "), "{printed}");
        assert_eq!((printed.trim().lines().count(), dir.exists()), (1, false), "{printed}");
    }
}

#[test]
fn what_cannot_be_written_is_told_with_the_figures_of_the_run() {
    let deployment = Deployment::init(5);
    let _null = deployment.null(1_000);
    let (config, acks) = (gateway(&deployment), deployment.file("acks"));
    let loadgen = tests::binaries().join("loadgen");
    // No file may grow above 100 KiB: some 2,000 acknowledgements.
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(&loadgen)
        .args(["run", "--config", &config, "--rate", "5000", "--duration", "60", "--warmup", "0"])
        .args(["--acks", acks.to_str().unwrap()])
        .args(["--json", deployment.file("run.json").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(ENVIRONMENT), "{}", tests::text(&output));
    let text = tests::text(&output);
    assert!(text.contains("run-") && text.contains("File too large"), "{text}");
    let result = result(&deployment);
    assert!(result["ok"].as_u64().unwrap() > 1_000, "{result}");
    assert_eq!(result["interrupted"], true);

    let short = ["run", "--config", &config, "--rate", "100", "--duration", "0.3", "--warmup", "0"];
    for (option, place) in
        [("--json", "/dev/full"), ("--report", "/dev/full"), ("--hlog", "/dev/full")]
    {
        let output = deployment.loadgen(&[&short[..], &[option, place]].concat());
        assert_eq!(output.status.code(), Some(ENVIRONMENT), "{option}");
        let text = tests::text(&output);
        assert!(text.contains("answered as asked") && text.contains("No space left"), "{text}");
    }
    let output = deployment.loadgen(&[&short[..], &["--json", "/nowhere/run.json"]].concat());
    assert_eq!(output.status.code(), Some(ENVIRONMENT));
    assert!(!tests::text(&output).contains("requests/s"), "refused before any load");

    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(&loadgen);
    let output = command.args(short).stdin(Stdio::null()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(ENVIRONMENT));
    let text = tests::text(&output);
    assert!(
        text.starts_with("loadgen: cannot print to stdout") && text.lines().count() == 1,
        "{text}"
    );
}

#[test]
fn impossible_numbers_and_taken_ports_are_refused_in_one_line() {
    let (deployment, foreign) = (Deployment::init(5), Deployment::init(5));
    let config = gateway(&deployment);
    for bad in [
        &["--rate=0"][..],
        &["--rate=-1"],
        &["--rate=nan"],
        &["--rate=1e99"],
        &["--rate=5", "--duration=0"],
        &["--rate=5", "--duration=inf"],
        &["--rate=5", "--warmup=-1"],
        &["--rate=5", "--deadline=nan"],
        &["--rate=5", "--zipf=nan"],
        &["--rate=5", "--streams=0"],
    ] {
        let output = deployment.loadgen(&[&["run", "--config", &config], bad].concat());
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert_eq!(tests::text(&output).lines().count(), 1, "{bad:?}: {}", tests::text(&output));
    }
    let _null = deployment.null(1_000);
    let site = deployment.site_file(1);
    let output = deployment.loadgen(&["null", "--config", site.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(ENVIRONMENT));
    assert!(tests::text(&output).contains("is it in use?"), "{}", tests::text(&output));

    // The certificates of another cluster.
    let text = std::fs::read_to_string(&config).unwrap();
    let theirs = text.replace("certs/", &format!("{}/certs/", foreign.path().display()));
    assert_ne!(text, theirs);
    std::fs::write(&config, theirs).unwrap();
    let output = deployment.loadgen(&["run", "--config", &config, "--rate", "5"]);
    assert_eq!(output.status.code(), Some(ENVIRONMENT));
    let text = tests::text(&output);
    assert!(text.contains("certificate") && text.contains("belong to this cluster?"), "{text}");
}

//! A run's result in lines for people.

use super::{Percentiles, Report};
use std::collections::BTreeMap;

impl Report {
    /// Prints the summary.
    pub(crate) fn print(&self) {
        let label = match (self.interrupted, self.closed_loop) {
            (true, _) => " (stopped before its end)",
            (_, true) => " (closed loop: uncorrected)",
            _ => "",
        };
        if self.warmup_s > 0.0 {
            println!("\nThe first {:.1} s are warm-up and in no figure.", self.warmup_s);
        }
        println!(
            "\n{:.0} requests/s offered, {:.0}/s answered as asked over {:.1} s{label}",
            self.offered_rate,
            self.achieved_rate,
            self.duration_s - self.warmup_s,
        );
        println!(
            "sent {}, ok {}, refused {}, unanswered {}, not sent {}, left out {}, sent again {}",
            self.sent,
            self.ok,
            self.refused,
            self.unanswered,
            self.not_sent,
            self.skipped,
            self.resent
        );
        self.print_latencies();
        println!("answers   {}", joined(&self.by_code));
        println!("states    {}", joined(&self.by_state));
        let late = |us: Option<u64>| us.unwrap_or(0);
        println!(
            "generator {:.2} CPU s, {:.2} us per request, paced by {}, late p50 {} p99 {} max {} us: {}",
            self.cpu_s,
            self.cpu_us_per_request,
            self.pace.as_deref().unwrap_or("the answers"),
            late(self.generator.own_lateness_us.p50),
            late(self.generator.own_lateness_us.p99),
            late(self.generator.own_lateness_us.max),
            self.generator
                .reason
                .as_deref()
                .or(self.generator.note.as_deref())
                .unwrap_or("kept up"),
        );
        println!("host      {}", self.host);
        if let Some(events) = &self.events {
            println!("events    {events}");
        }
        for verdict in &self.goals {
            let word = if verdict.met { "met   " } else { "MISSED" };
            println!("goal      {word} {} (measured {})", verdict.goal, verdict.measured);
        }
    }

    fn print_latencies(&self) {
        println!(
            "\n{:<22}{:>10}{:>10}{:>10}{:>10}{:>10}  ms",
            "latency", "p50", "p90", "p99", "p99.9", "max"
        );
        for (name, latency) in self.latencies() {
            print_row(&name, latency);
        }
        println!(
            "Planned latency counts from when a request should have left: it holds the waiting that \
             a stall causes\nbehind it, and is infinite for what was refused, never answered or never \
             sent. Admitted leaves out what was\nrefused or never sent. Raw latency counts from the \
             real send: it leaves that out as well, and hides the waiting.\n"
        );
    }
}

impl Report {
    /// The rows of the table; what was admitted only where that is not everything.
    pub(super) fn latencies(&self) -> Vec<(String, &Percentiles)> {
        let mut rows = vec![("planned, all".to_owned(), &self.latency_us)];
        if self.refused + self.not_sent > 0 {
            rows.push(("planned, admitted".to_owned(), &self.latency_admitted_us));
        }
        rows.push(("raw, admitted".to_owned(), &self.latency_raw_us));
        rows.push(("lateness of sends".to_owned(), &self.lateness_us));
        if self.refused > 0 {
            rows.push(("until refused".to_owned(), &self.refusal_latency_us));
        }
        if self.operations.len() > 1 {
            for (name, operation) in &self.operations {
                rows.push((format!("planned, {name}"), &operation.latency_us));
                if operation.refused + operation.not_sent > 0 {
                    rows.push(("  admitted".to_owned(), &operation.latency_admitted_us));
                }
            }
        }
        rows
    }
}

fn joined(counts: &BTreeMap<&'static str, u64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn print_row(name: &str, percentiles: &Percentiles) {
    let ms = |us: Option<u64>| match us {
        Some(us) => format!("{:.3}", us as f64 / 1_000.0),
        None if percentiles.count == 0 => "-".to_owned(),
        None => "infinite".to_owned(),
    };
    println!(
        "{name:<22}{:>10}{:>10}{:>10}{:>10}{:>10}",
        ms(percentiles.p50),
        ms(percentiles.p90),
        ms(percentiles.p99),
        ms(percentiles.p999),
        ms(percentiles.max),
    );
}

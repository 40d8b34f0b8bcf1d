//! What is asked of a drill, from the clients' view, and how that is said.

use std::fmt;

/// What is asked of a drill. The audit must be clean and every payment must have ended,
/// whatever else is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Targets {
    /// Unavailability of the affected shards over all repetitions, milliseconds.
    pub(super) p50_ms: Option<f64>,
    /// Its 99th percentile.
    pub(super) p99_ms: Option<f64>,
    /// Its maximum.
    pub(super) max_ms: Option<f64>,
    /// Those three hold for each fault of a repetition by itself.
    pub(super) each_fault: bool,
    /// How often a shard may come to another leader.
    pub(super) leader_changes: Option<f64>,
    /// No request of any shard fails.
    pub(super) no_failure: bool,
    /// No request of a shard that is led elsewhere fails.
    pub(super) no_failure_elsewhere: bool,
    /// What requests may fail with, and nothing else.
    pub(super) only: Option<Vec<String>>,
    /// Share of the answers per second before that are left during the fault.
    pub(super) throughput: Option<f64>,
    /// Share of the sites' maximum that is left when they are apart.
    pub(super) far_maximum: Option<f64>,
    /// Every refusal for lack of capacity says when to try again.
    pub(super) hinted: bool,
    /// Share of them that is there again at the end.
    pub(super) recovered: Option<f64>,
    /// What the fault may add to the median latency, milliseconds.
    pub(super) added_p50_ms: Option<f64>,
    /// How many times as long the 99th percentile of what is answered as asked may be
    /// during the fault.
    pub(super) admitted_p99: Option<f64>,
    /// A healed site has everything after this, milliseconds.
    pub(super) level_ms: Option<f64>,
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let each = if self.each_fault { ", each fault by itself" } else { "" };
        for (name, bound) in [("p50", self.p50_ms), ("p99", self.p99_ms), ("max", self.max_ms)] {
            parts.extend(bound.map(|ms| format!("unavailable {name} <= {ms} ms{each}")));
        }
        let changes = |most: f64| format!("at most {most} leader changes");
        parts.extend(self.leader_changes.map(changes));
        parts.extend(self.no_failure.then(|| "no failed request".to_owned()));
        let elsewhere = "no failed request of shards led elsewhere";
        parts.extend(self.no_failure_elsewhere.then(|| elsewhere.to_owned()));
        parts.extend(self.only.as_ref().map(|codes| format!("only {}", codes.join(" or "))));
        parts.extend(self.throughput.map(|share| format!("throughput >= {:.0} %", share * 100.0)));
        let far = |share: f64| format!("maximum >= {:.0} % of that without", share * 100.0);
        parts.extend(self.far_maximum.map(far));
        parts.extend(self.hinted.then(|| "every refusal says when to try again".to_owned()));
        let again = |share: f64| format!("throughput >= {:.0} % at the end", share * 100.0);
        parts.extend(self.recovered.map(again));
        parts.extend(self.added_p50_ms.map(|ms| format!("at most {ms} ms added to p50")));
        parts.extend(self.admitted_p99.map(|times| format!("p99 of admitted <= {times}x")));
        parts.extend(self.level_ms.map(|ms| format!("level again in {ms} ms")));
        parts.push("every payment ended".to_owned());
        f.write_str(&parts.join(", "))
    }
}

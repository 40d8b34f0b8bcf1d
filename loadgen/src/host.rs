//! What the host took away while a run was measured: CPU time stolen by other
//! guests, and moments at which a thread that should have run did not.
//!
//! Latency percentiles of a run on a throttled machine say something about the
//! machine; this tells such a run from an honest one. Judges nothing. Tested on
//! texts of the kernel and on made-up lateness.

use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io::Read;

/// CPU time of the whole machine since its start, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuTimes {
    cpus: u32,
    total: u64,
    steal: u64,
    /// How long an idle CPU may take to wake up, where somebody has asked for a bound,
    /// microseconds.
    wake_up_us: Option<u32>,
}

impl CpuTimes {
    /// The present state; `None` where the kernel does not tell.
    pub(crate) fn read() -> Option<Self> {
        let times = Self::of_stat(&std::fs::read_to_string("/proc/stat").ok()?)?;
        // PM QoS: what is read is the strictest bound of all that hold the file open.
        let mut bound = [0; 4];
        let read = File::open("/dev/cpu_dma_latency").and_then(|mut it| it.read_exact(&mut bound));
        Some(Self { wake_up_us: read.ok().and_then(|()| asked_for(bound)), ..times })
    }

    /// Reads the lines `cpu` (all together) and `cpu0`, `cpu1`, .. of `/proc/stat`.
    fn of_stat(text: &str) -> Option<Self> {
        let mut lines = text.lines().take_while(|line| line.starts_with("cpu"));
        // user, nice, system, idle, iowait, irq, softirq, steal; guests' time,
        // which follows, is part of user time already.
        let fields = lines.next()?.strip_prefix("cpu ")?.split_ascii_whitespace().take(8);
        let ticks = fields.map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
        let (steal, cpus) = (*ticks.get(7)?, lines.count());
        let total = ticks.iter().fold(0_u64, |sum, ticks| sum.saturating_add(*ticks));
        let cpus = u32::try_from(cpus).ok()?;
        (cpus > 0).then_some(Self { cpus, total, steal, wake_up_us: None })
    }

    /// Share of the time since `earlier` that was stolen; `None` when no time went by.
    fn steal_since(&self, earlier: &Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|total| *total > 0)?;
        Some(self.steal.saturating_sub(earlier.steal) as f64 / total as f64)
    }
}

/// The bound; `None` for the kernel's 2,000 seconds, which mean that nobody asked.
fn asked_for(bound: [u8; 4]) -> Option<u32> {
    u32::try_from(i32::from_ne_bytes(bound)).ok().filter(|us| *us < 1_000_000)
}

/// How late a thread woke up that only sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stalls {
    /// Wake-ups that were looked at.
    wake_ups: u64,
    over_1ms: u64,
    over_5ms: u64,
    over_10ms: u64,
    worst_us: u64,
}

impl Stalls {
    /// Takes one wake-up, this much after its time.
    pub(crate) fn note(&mut self, late_ns: u64) {
        self.wake_ups += 1;
        self.worst_us = self.worst_us.max(late_ns / 1_000);
        self.over_1ms += u64::from(late_ns > 1_000_000);
        self.over_5ms += u64::from(late_ns > 5_000_000);
        self.over_10ms += u64::from(late_ns > 10_000_000);
    }
}

/// What is known of the host over a measured window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Host {
    /// CPUs of the machine.
    cpus: Option<u32>,
    /// Share of all CPUs' time that went to other guests of the host, percent.
    steal_percent: Option<f64>,
    /// Late wake-ups of the pacing thread; none are known of a closed loop.
    stalls: Option<Stalls>,
    /// How long an idle CPU may take to wake up, by what a process on the machine has asked of the
    /// kernel (a loaded switch does), microseconds; 0: idle ones spin. `None`: nobody has, or it
    /// is not to be read.
    wake_up_us: Option<u32>,
}

impl Host {
    /// Takes in the stalls of another pacing thread.
    pub(crate) fn add(&mut self, other: &Self) {
        if let (Some(all), Some(one)) = (&mut self.stalls, &other.stalls) {
            all.wake_ups += one.wake_ups;
            all.over_1ms += one.over_1ms;
            all.over_5ms += one.over_5ms;
            all.over_10ms += one.over_10ms;
            all.worst_us = all.worst_us.max(one.worst_us);
        }
    }

    /// From the CPU times at both ends of the window.
    pub(crate) fn new(
        before: Option<CpuTimes>,
        after: Option<CpuTimes>,
        stalls: Option<Stalls>,
    ) -> Self {
        let steal = before.zip(after).and_then(|(before, after)| after.steal_since(&before));
        let cpus = after.map(|after| after.cpus);
        let wake_up_us = after.and_then(|after| after.wake_up_us);
        Self { cpus, steal_percent: steal.map(|share| share * 100.0), stalls, wake_up_us }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.steal_percent, self.cpus) {
            (Some(percent), Some(cpus)) => write!(f, "steal {percent:.1} % of {cpus} CPUs; ")?,
            _ => f.write_str("steal not known; ")?,
        }
        match &self.stalls {
            None => f.write_str("stalls not known")?,
            Some(stalls) => write!(
                f,
                "{} stalls over 1 ms, {} over 5 ms, {} over 10 ms, worst {:.1} ms",
                stalls.over_1ms,
                stalls.over_5ms,
                stalls.over_10ms,
                stalls.worst_us as f64 / 1_000.0
            )?,
        }
        match self.wake_up_us {
            None => Ok(()),
            Some(0) => f.write_str("; idle CPUs asked to stay awake"),
            Some(us) => write!(f, "; idle CPUs asked to wake within {us} us"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(user: u64, steal: u64) -> String {
        format!(
            "cpu  {user} 0 10 20 5 0 3 {steal} 7 0\ncpu0 1 0 1 1 1 0 1 1 0 0\n\
             cpu1 1 0 1 1 1 0 1 1 0 0\nintr 1 2 3\ncpufoo 9\n"
        )
    }

    #[test]
    fn steal_is_a_share_of_all_time_and_guests_are_not_counted_twice() {
        let before = CpuTimes::of_stat(&stat(100, 50)).unwrap();
        assert_eq!(before, CpuTimes { cpus: 2, total: 188, steal: 50, wake_up_us: None });
        let after = CpuTimes::of_stat(&stat(190, 60)).unwrap();
        assert_eq!(after.steal_since(&before), Some(0.1));
        assert_eq!(after.steal_since(&after), None);
        let line = Host::new(Some(before), Some(after), None).to_string();
        assert_eq!(line, "steal 10.0 % of 2 CPUs; stalls not known");
    }

    #[test]
    fn bounds_on_waking_up_are_told() {
        for (bound, known, told) in [
            (0, Some(0), "; idle CPUs asked to stay awake"),
            (2, Some(2), "; idle CPUs asked to wake within 2 us"),
            (2_000_000_000, None, "known"),
            (-1, None, "known"),
        ] {
            let wake_up_us = asked_for(i32::to_ne_bytes(bound));
            assert_eq!(wake_up_us, known);
            let line = Host { wake_up_us, ..Host::default() }.to_string();
            assert!(line.ends_with(told), "{line}");
        }
    }

    #[test]
    fn other_texts_are_not_known() {
        for text in ["", "cpu", "cpu 1 2 3", "cpu  1 2 3 4 5 6 7 x 9 9\ncpu0 1\n", "intr 5"] {
            assert_eq!(CpuTimes::of_stat(text), None, "{text:?}");
        }
        let line = Host::new(None, None, Some(Stalls::default())).to_string();
        assert!(line.starts_with("steal not known; 0 stalls over 1 ms"), "{line}");
    }

    #[test]
    fn stalls_are_counted_by_their_length() {
        let mut stalls = Stalls::default();
        for late in [0, 1_000_000, 1_000_001, 6_000_000, 11_234_000] {
            stalls.note(late);
        }
        let expected =
            Stalls { wake_ups: 5, over_1ms: 3, over_5ms: 2, over_10ms: 1, worst_us: 11_234 };
        assert_eq!(stalls, expected);
        let line = Host { stalls: Some(stalls), ..Host::default() }.to_string();
        let told = "3 stalls over 1 ms, 2 over 5 ms, 1 over 10 ms, worst 11.2 ms";
        assert_eq!(line, format!("steal not known; {told}"));
    }
}

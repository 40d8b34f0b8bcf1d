//! The plan of the channel's faults as arguments, on the command line or in a file.
//!
//! Pure but for reading. Tested on good plans and bad ones.

use super::faults::{Faults, Late, Law, Outage};
use crate::exit::Failure;
use crate::goal::parse_percent;
use clap::{Args, Parser};
use std::path::Path;

/// What goes wrong.
#[derive(Args, Clone, Debug)]
pub(crate) struct FaultArgs {
    /// How long an answer takes: none, 2ms, uniform:1ms..5ms, exp:3ms (to about 1 ms).
    #[arg(long, default_value = "none", value_parser = Law::parse)]
    pub(crate) latency: Law,
    /// Charges declined for good, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) decline: f64,
    /// Requests lost before anything happens, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) drop_request: f64,
    /// Replies lost after it happened, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) drop_reply: f64,
    /// Replies that come late: PERCENT:MILLISECONDS.
    #[arg(long, value_parser = Late::parse)]
    pub(crate) late: Option<Late>,
    /// Replies sent twice, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) duplicate: f64,
    /// Replies to charges that name another amount, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) wrong_amount: f64,
    /// No answer at all from second FROM to UNTIL: FROM:UNTIL.
    #[arg(long, value_parser = Outage::parse)]
    pub(crate) outage: Option<Outage>,
    /// Most operations per second; more are answered as unavailable.
    #[arg(long)]
    pub(crate) rate_limit: Option<u64>,
}

/// A plan of faults as it stands in a file.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct PlanFile {
    #[command(flatten)]
    faults: FaultArgs,
}

/// Largest plan file, bytes.
const PLAN_MAX: u64 = 64 << 10;

impl FaultArgs {
    /// Reads a plan: one argument per line, empty lines and those with `#` left out.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim);
        let words = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        PlanFile::try_parse_from(words).map(|plan| plan.faults).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        })
    }

    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let failed = |reason: &dyn std::fmt::Display| {
            Failure::usage(format_args!("plan {}: {reason}", path.display()))
        };
        let size = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
        if size > PLAN_MAX {
            return Err(failed(&format_args!("larger than {PLAN_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        Self::parse(&text).map_err(|reason| failed(&reason))
    }

    pub(super) fn faults(&self, seed: u64) -> Faults {
        Faults {
            seed,
            latency: self.latency,
            decline: self.decline,
            drop_request: self.drop_request,
            drop_reply: self.drop_reply,
            late: self.late,
            duplicate: self.duplicate,
            wrong_amount: self.wrong_amount,
            outage: self.outage,
            rate_limit: self.rate_limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_file_is_read_as_arguments_and_mistakes_are_told_in_a_line() {
        let plan = "# slow\n--latency=2ms\n\n--late=1%:300\n--outage=0:5\n";
        let faults = FaultArgs::parse(plan).unwrap().faults(7);
        assert_eq!((faults.seed, faults.latency), (7, Law::Constant(2_000_000)));
        assert_eq!(faults.late, Late::parse("1%:300").ok());
        assert_eq!(FaultArgs::parse("").unwrap().faults(1), Faults::none());
        for bad in ["--latency=soon", "--colour=1", "--drop-reply=101%", "no"] {
            let reason = FaultArgs::parse(bad).err().unwrap();
            assert!(!reason.contains('\n') && !reason.is_empty(), "{reason}");
        }
    }
}

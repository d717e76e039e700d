//! What `casemate run` says beside the guest's own output, all on standard error.

use std::fmt::Display;

use anyhow::Context as _;
use casemate_foreign::lines;
use casemate_launch::tdx::PageOrder;
use casemate_launch::{LaunchPlan, PlatformKind, snp, tdx};
use casemate_machine::{Guest, Outcome, Outlet, SharedMemory};
use serde_json::json;

use crate::commands::cautions::{Caution, cautions, measured_line};
use casemate_supervisor::{MOST_RESTARTS, RESTART_PERIOD};

/// Tells people or machines what happens.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) json: bool,
    /// Standard error.
    pub(super) errors: Outlet,
}

impl Reporter {
    /// Writes a line.
    fn say(&self, line: impl Display) {
        self.errors.say(format!("{line}\n").as_bytes());
    }

    /// No guest runs, or no longer, and why.
    pub(super) fn failed(&self, error: &anyhow::Error, status: u8) {
        // Some part of it may come from the guest.
        let text = lines(&format!("{error:#}")).into_owned();
        if self.json {
            self.say(json!({"event": "failed", "status": status, "text": text}));
        } else {
            // The whole chain, outermost first: what was attempted, then why it failed.
            self.say(format_args!("casemate: {text}"));
        }
    }

    /// What the platform will measure, before it is asked for anything.
    pub(super) fn planned(&self, plan: &LaunchPlan) -> anyhow::Result<()> {
        const FAILED: &str = "could not measure the guest";
        let platform = plan.platform();
        let digest = match platform {
            PlatformKind::Plain => return Ok(()),
            PlatformKind::Snp => snp::measure(plan).context(FAILED)?.launch_digest(),
            PlatformKind::Tdx => tdx::mrtd(plan, PageOrder::PerPage).context(FAILED)?,
        };
        let digest = digest.to_string();
        if self.json {
            let event = json!({"event": "measured", "platform": platform, "measurement": digest});
            self.say(event);
        } else {
            self.say(format_args!("casemate: expected measurement {digest}"));
        }
        Ok(())
    }

    /// Hazards of a confidential guest's command line.
    pub(super) fn cautions(&self, guest: &Guest) {
        let config = guest.config();
        let Some(line) = measured_line(config) else { return };
        if guest.plan().platform() == PlatformKind::Plain {
            return;
        }
        for caution in cautions(line, config.vsock.is_some()) {
            if self.json {
                let Caution { problem, remedy } = caution;
                self.say(json!({"event": "warning", "text": problem, "remedy": remedy}));
            } else {
                self.say(format_args!("casemate: warning: {caution}"));
            }
        }
    }

    pub(super) fn launched(&self, guest: &Guest) {
        if self.json {
            let (memory, vcpus) = (guest.config().memory.0, guest.config().vcpus);
            let platform = guest.plan().platform();
            let event = json!(
                {"event": "launched", "platform": platform, "memory": memory, "vcpus": vcpus}
            );
            self.say(event);
        }
    }

    /// The guest has shown the right evidence.
    pub(super) fn attested(&self) {
        if self.json {
            self.say(json!({"event": "attested"}));
        } else {
            self.say(format_args!("casemate: the guest's evidence is that of what was launched"));
        }
    }

    pub(super) fn restarts(&self, outcome: &Outcome) {
        if self.json {
            self.say(json!({"event": "restarts", "outcome": outcome.name()}));
        } else {
            self.say(format_args!("casemate: {outcome}; it starts anew"));
        }
    }

    /// The guest wants to start anew, but has done so too often.
    pub(super) fn gives_up(&self) {
        let text = format!(
            "{MOST_RESTARTS} restarts within {} s are too many: no other one",
            RESTART_PERIOD.as_secs()
        );
        if self.json {
            self.say(json!({"event": "gives-up", "text": text}));
        } else {
            self.say(format_args!("casemate: {text}"));
        }
    }

    /// The end of the last run; `memory` is what a confidential guest shared in it.
    pub(super) fn ended(&self, outcome: &Outcome, memory: Option<SharedMemory>) {
        if let Some(memory) = memory {
            tracing::info!("the guest shared {} of its memory", shared(memory));
        }
        if self.json {
            let (name, status, text) = (outcome.name(), outcome.status(), outcome.to_string());
            let memory = memory.map(|SharedMemory { current, peak, limit }| {
                json!({"current": current, "peak": peak, "limit": limit})
            });
            let event = json!({
                "event": "ended", "outcome": name, "status": status, "text": text, "shared": memory
            });
            self.say(event);
        } else if *outcome != Outcome::PowerOff {
            self.say(format_args!("casemate: {outcome}"));
        }
    }
}

impl Reporter {
    /// The run is over, but these threads did not end with it.
    pub(super) fn unfinished(&self, threads: &[String]) {
        let threads = threads.join(", ");
        if self.json {
            self.say(json!({"event": "unfinished", "threads": threads}));
        } else {
            self.say(format_args!("casemate: ends without waiting any longer for {threads}"));
        }
    }

    /// This program has a fault.
    pub(super) fn fault(&self, description: &str, status: u8) {
        if self.json {
            self.say(json!({"event": "fault", "status": status, "text": description}));
        } else {
            self.say(format_args!(
                "casemate: the run ends for a fault of this program: {description}"
            ));
        }
    }

    /// Bytes of the guest that `output` did not take.
    pub(super) fn lost(&self, output: &str, bytes: u64, error: Option<&str>) {
        let why = error.unwrap_or("nobody reads it");
        if self.json {
            self.say(json!({"event": "lost", "bytes": bytes, "text": why}));
        } else {
            self.say(format_args!(
                "casemate: {output} did not take {bytes} bytes of the guest: {why}"
            ));
        }
    }
}

/// Shared memory in words.
pub(super) fn shared(memory: SharedMemory) -> String {
    let SharedMemory { current, peak, limit } = memory;
    let limit = limit.map_or("no limit".into(), |limit| format!("limit {limit}"));
    format!("{current} bytes, at most {peak}, {limit}")
}

//! What `casemate run` says beside the guest's own output, all on standard error.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use casemate_launch::tdx::PageOrder;
use casemate_launch::{LaunchPlan, PlatformKind, snp, tdx};
use casemate_machine::{Guest, Outcome, SharedMemory};
use serde_json::json;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

use crate::commands::cautions::{Caution, cautions, measured_line};

/// Starts the log.
pub(super) fn log(filter: Option<&str>, json: bool) -> anyhow::Result<()> {
    let default = || std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let text = filter.map(str::to_owned).or_else(default).unwrap_or_else(|| "warn".into());
    let filter: Targets = text.parse().with_context(|| {
        format!("\"{text}\" is no log filter; try info, or casemate_machine=debug")
    })?;
    let layer = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let layer = if json { layer.json().boxed() } else { layer.boxed() };
    Registry::default().with(layer).with(filter).init();
    Ok(())
}

/// Tells machines that no guest runs, or no longer, and why.
pub(super) fn failed(error: &anyhow::Error, status: u8) {
    let text = format!("{error:#}");
    eprintln!("{}", json!({"event": "failed", "status": status, "text": text}));
}

/// Tells people or machines what happens.
#[derive(Clone, Copy)]
pub(super) struct Reporter {
    pub(super) json: bool,
}

impl Reporter {
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
            eprintln!("{event}");
        } else {
            eprintln!("casemate: expected measurement {digest}");
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
                eprintln!("{}", json!({"event": "warning", "text": problem, "remedy": remedy}));
            } else {
                eprintln!("casemate: warning: {caution}");
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
            eprintln!("{event}");
        }
    }

    /// The guest has shown the right evidence.
    pub(super) fn attested(self) {
        if self.json {
            eprintln!("{}", json!({"event": "attested"}));
        } else {
            eprintln!("casemate: the guest's evidence is that of what was launched");
        }
    }

    pub(super) fn restarts(&self, outcome: &Outcome) {
        if self.json {
            eprintln!("{}", json!({"event": "restarts", "outcome": outcome.name()}));
        } else {
            eprintln!("casemate: {outcome}; it starts anew");
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
            eprintln!("{event}");
        } else if *outcome != Outcome::PowerOff {
            eprintln!("casemate: {outcome}");
        }
    }
}

/// Shared memory in words.
pub(super) fn shared(memory: SharedMemory) -> String {
    let SharedMemory { current, peak, limit } = memory;
    let limit = limit.map_or("no limit".into(), |limit| format!("limit {limit}"));
    format!("{current} bytes, at most {peak}, {limit}")
}

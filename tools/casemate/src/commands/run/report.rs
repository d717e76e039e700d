//! What `casemate run` says beside the guest's own output, all on standard error.

use anyhow::Context as _;
use casemate_config::GuestConfig;
use casemate_vmm::Outcome;
use serde_json::json;
use tracing_subscriber::EnvFilter;

/// Starts the log.
pub(super) fn log(filter: Option<&str>, json: bool) -> anyhow::Result<()> {
    let default = || std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let text = filter.map(str::to_owned).or_else(default).unwrap_or_else(|| "warn".into());
    let filter = EnvFilter::builder()
        .parse(&text)
        .with_context(|| format!("\"{text}\" is no log filter; try info, or casemate_vmm=debug"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
    Ok(())
}

/// Tells people or machines what happens.
pub(super) struct Reporter {
    pub(super) json: bool,
}

impl Reporter {
    pub(super) fn launched(&self, config: &GuestConfig) {
        if self.json {
            let (memory, vcpus) = (config.memory.0, config.vcpus);
            let event =
                json!({"event": "launched", "platform": "plain", "memory": memory, "vcpus": vcpus});
            eprintln!("{event}");
        }
    }

    pub(super) fn restarts(&self, outcome: &Outcome) {
        if self.json {
            eprintln!("{}", json!({"event": "restarts", "outcome": outcome.name()}));
        } else {
            eprintln!("casemate: {outcome}; it starts anew");
        }
    }

    pub(super) fn ended(&self, outcome: &Outcome) {
        if self.json {
            let (name, status, text) = (outcome.name(), outcome.status(), outcome.to_string());
            let event = json!({"event": "ended", "outcome": name, "status": status, "text": text});
            eprintln!("{event}");
        } else if *outcome != Outcome::PowerOff {
            eprintln!("casemate: {outcome}");
        }
    }
}

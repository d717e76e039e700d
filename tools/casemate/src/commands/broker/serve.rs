//! `casemate broker serve`

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use casemate_broker::{
    Broker, Endorsements, ListenAddress, Listener, Network, ProxyHeader, Settings, TrustedProxies,
    Verifier, serve,
};
use casemate_sandbox::{Mode, Sandbox, Thread};
use casemate_verify::{MAX_CERTIFICATE, MAX_INPUT};
use clap::ValueEnum;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{StoreArgs, memory};
use crate::commands::{read, words};

/// Where a broker listens when nobody says where.
const DEFAULT_LISTEN: [&str; 2] = ["vsock:8080", "tcp:127.0.0.1:8080"];

/// Serve secrets to guests
///
/// Speaks the Key Broker Service protocol of confidential-containers, version 0.4, over HTTP. Secrets
/// are encrypted to the guest's key. For clients beyond this machine other than casemate-agent, put a TLS
/// proxy in front, which authenticates the broker. Prints "listening at ADDRESS" for each address.
///
/// A kill -9 at any time loses no answered request.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// Audit log; created if missing
    #[arg(long, value_name = "FILE")]
    audit: PathBuf,
    /// Listen at vsock:PORT, tcp:IP:PORT or unix:PATH; repeatable
    ///
    /// The default is vsock:8080, if this machine supports vsock, and tcp:127.0.0.1:8080.
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<ListenAddress>,
    /// VCEK or VLEK certificate, if hosts do not provide one with reports; repeatable
    #[arg(long, value_name = "FILE")]
    chip_certificate: Vec<PathBuf>,
    /// Revocation list of AMD, used instead of those that hosts provide; repeatable
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// Collateral of TDX platforms, as for casemate verify tdx; repeatable
    #[arg(long, value_name = "FILE")]
    tdx_collateral: Vec<PathBuf>,
    /// Also trust this root, for tests only
    ///
    /// Evidence under it proves nothing, and all output says TEST.
    #[arg(long, value_name = "FILE", requires = "test_ask")]
    test_root: Option<PathBuf>,
    /// Intermediate certificate between test root and chip
    #[arg(long, value_name = "FILE", requires = "test_root")]
    test_ask: Option<PathBuf>,
    /// Start with a store restored from a backup, and continue its audit log
    #[arg(long)]
    restored: bool,
    /// Requests to answer at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,
    /// Limit for each phase of a request: arrival, waiting, and sending the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    timeout: u16,
    /// Trust this reverse proxy (IP or IP/BITS) to name its clients; repeatable
    ///
    /// Limits and audit records then apply to the clients.
    #[arg(long, value_name = "NETWORK")]
    trusted_proxy: Vec<Network>,
    /// Header in which trusted proxies name their clients
    #[arg(long, value_enum, default_value_t = HeaderArg::XForwardedFor, requires = "trusted_proxy")]
    proxy_header: HeaderArg,
    /// Average requests per second and peer; bursts may be three times as large
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rate: u16,
    /// Sandbox the broker; log records system calls instead of killing
    #[arg(long, value_name = "MODE", default_value = "off", value_parser = words::<Mode>(Mode::WORDS))]
    sandbox: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HeaderArg {
    XForwardedFor,
    Forwarded,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // A subscriber that is there already has been asked for.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    let sandbox = Sandbox::begin(args.sandbox, None, Vec::new(), &std::io::stdin())?;
    memory::lock();
    let endorsements = args.endorsements()?;
    if endorsements.test_root.is_some() {
        eprintln!(
            "casemate: TEST: a TEST root is trusted; what this broker releases is not protected"
        );
    }
    let store = args.store.open()?;
    let verifier = Verifier::new(endorsements);
    let broker = if args.restored {
        Broker::restored(store, verifier, &args.audit)?
    } else {
        Broker::new(store, verifier, &args.audit)?
    };
    let listeners = args.listeners()?;
    let mut out = std::io::stdout();
    for listener in &listeners {
        writeln!(out, "listening at {}", listener.address())?;
    }
    out.flush()?;
    let rate = u32::from(args.rate);
    let settings = Settings {
        workers: usize::from(args.workers),
        timeout: Duration::from_secs(args.timeout.into()),
        rate,
        burst: rate.saturating_mul(3),
        connections: connections(),
        proxies: args.proxies(),
        ..Settings::default()
    };
    sandbox.seal()?;
    sandbox.enter(Thread::Broker)?;
    serve(Arc::new(broker), listeners, &settings);
    bail!("the audit log {} cannot be written any more; restart the broker", args.audit.display())
}

/// How many connections the process can hold, up to the default: each takes an open file.
fn connections() -> usize {
    /// Files for the store, the log, listeners and the like.
    const OTHERS: u64 = 64;
    let wanted = Settings::default().connections;
    let mut limit = getrlimit(Resource::Nofile);
    let enough = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_add(OTHERS);
    if limit.current.is_some_and(|current| current < enough) {
        limit.current = Some(limit.maximum.map_or(enough, |maximum| maximum.min(enough)));
        // If it fails, the old limit holds.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let possible = files.saturating_sub(OTHERS).max(16);
    usize::try_from(possible).unwrap_or(usize::MAX).min(wanted)
}

impl Args {
    fn listeners(&self) -> anyhow::Result<Vec<Listener>> {
        let bind = |address: &ListenAddress| Listener::bind(address).map_err(anyhow::Error::from);
        if !self.listen.is_empty() {
            return self.listen.iter().map(bind).collect();
        }
        let mut listeners = Vec::new();
        for address in DEFAULT_LISTEN {
            let address = address.parse().context("a default address")?;
            match (bind(&address), &address) {
                (Ok(listener), _) => listeners.push(listener),
                (Err(error), ListenAddress::Vsock(_)) => eprintln!(
                    "casemate: {error:#}; going on without (modprobe vhost_vsock gives this machine vsock)"
                ),
                (Err(error), _) => return Err(error),
            }
        }
        Ok(listeners)
    }

    fn proxies(&self) -> TrustedProxies {
        let header = match self.proxy_header {
            HeaderArg::XForwardedFor => ProxyHeader::XForwardedFor,
            HeaderArg::Forwarded => ProxyHeader::Forwarded,
        };
        TrustedProxies { networks: self.trusted_proxy.clone(), header }
    }

    fn endorsements(&self) -> anyhow::Result<Endorsements> {
        let all = |what: &str, paths: &[PathBuf], limit| {
            paths.iter().map(|path| read(what, path, limit)).collect::<anyhow::Result<Vec<_>>>()
        };
        let certificate = |path: &Option<PathBuf>| {
            path.as_deref()
                .map(|path: &Path| read("test certificate", path, MAX_CERTIFICATE))
                .transpose()
        };
        Ok(Endorsements {
            chip_certificates: all("chip certificate", &self.chip_certificate, MAX_CERTIFICATE)?,
            revocation_lists: all("revocation list", &self.crl, MAX_CERTIFICATE)?,
            collateral: all("collateral", &self.tdx_collateral, MAX_INPUT)?,
            test_root: certificate(&self.test_ask)?.zip(certificate(&self.test_root)?),
        })
    }
}

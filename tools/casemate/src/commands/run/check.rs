//! `casemate run --attest`: the guest's own evidence, against what was launched.
//!
//! Whoever relies on the guest judges its evidence with `casemate verify`, signatures and all. This is
//! for whoever runs it: a difference here is a fault of the launch, or of the host.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use casemate_broker::bind_unix;
use casemate_foreign::one_line;
use casemate_launch::tdx::PageOrder;
use casemate_launch::{LaunchPlan, Policy, SnpPolicy, TdxPolicy, snp, tdx};
use casemate_machine::{Control, Guest, Outcome, thread};
use casemate_protocol::{CHECK_PORT, Challenger, Evidence, challenge_data};
use casemate_sandbox::{Sandbox, Thread};
use casemate_verify::Hex;
use casemate_verify::snp::Report;
use casemate_verify::tdx::td_report;
use serde::Deserialize;

use super::report::Reporter;

/// How often the thread looks around.
const PERIOD: Duration = Duration::from_millis(50);
/// How long a guest that has connected may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a line with evidence.
const LONGEST: usize = 1 << 20;

/// A guest that is about to be launched may show its evidence here.
pub(super) struct Waiting {
    listener: UnixListener,
    socket: Socket,
    expected: Expected,
    /// Opened while files can be.
    random: File,
}

/// A socket's file; it goes away with the value.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, socket = %self.0.display(), "could not remove the socket");
        }
    }
}

impl Waiting {
    pub(super) fn of(guest: &Guest) -> anyhow::Result<Self> {
        let expected = Expected::of(guest.plan())?;
        let vsock = guest.config().vsock.as_ref().context(
            "--attest needs a socket device, through which the guest shows its evidence: add --vsock",
        )?;
        let mut socket = vsock.socket.clone().into_os_string();
        socket.push(format!("_{CHECK_PORT}"));
        let socket = PathBuf::from(socket);
        let failed = || format!("could not wait for evidence at {}", socket.display());
        let listener = bind_unix(&socket).with_context(failed)?;
        listener.set_nonblocking(true).with_context(failed)?;
        let random = File::open("/dev/urandom").context("could not open /dev/urandom")?;
        Ok(Self { listener, socket: Socket(socket), expected, random })
    }

    /// Waits at most `limit` for the guest behind `control`.
    pub(super) fn start(
        self,
        control: Control,
        reporter: Reporter,
        limit: Duration,
        sandbox: &Sandbox,
    ) -> io::Result<Check> {
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let sandbox = sandbox.clone();
        let setup = move || Ok(sandbox.enter(Thread::Check)?);
        let Self { listener, socket, expected, random } = self;
        let work = move || match wait(&listener, &random, &expected, limit, &ended) {
            Ok(true) => reporter.attested(),
            Ok(false) => {}
            Err(error) => control.stop(Outcome::Failed(format!("{error:#}"))),
        };
        let thread = thread::spawn("check", setup, work)?;
        Ok(Check { over, thread: Some(thread), _socket: socket })
    }
}

/// Waits for one guest's evidence. Dropped, it waits no more.
pub(super) struct Check {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _socket: Socket,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it had to say, it has said.
            let _ = thread.join();
        }
    }
}

/// Whether the guest has shown the right evidence; not if the run is over first.
fn wait(
    listener: &UnixListener,
    random: &File,
    expected: &Expected,
    limit: Duration,
    over: &AtomicBool,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + limit;
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => return asked(stream, random, expected, over),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("could not wait for the guest's evidence"),
        }
        if Instant::now() > deadline {
            bail!(
                "it has shown no evidence within {} s: let it run casemate-agent check",
                limit.as_secs()
            );
        }
        std::thread::sleep(PERIOD);
    }
    Ok(false)
}

/// Asks for evidence, and tells both sides what is wrong with it. `false` if the run is over first.
fn asked(
    mut stream: UnixStream,
    mut random: &File,
    expected: &Expected,
    over: &AtomicBool,
) -> anyhow::Result<bool> {
    const FAILED: &str = "could not get the guest's evidence";
    stream.set_nonblocking(true).context(FAILED)?;
    let mut challenge = [0; 64];
    random.read_exact(&mut challenge).context(FAILED)?;
    stream.write_all(&challenge).context(FAILED)?;
    let Some(line) = read_line(&stream, PATIENCE, over).context(FAILED)? else { return Ok(false) };
    let verdict = expected.compare(&line, &challenge_data(Challenger::Check, &challenge));
    let answer = verdict
        .as_ref()
        .map_or_else(|error| one_line(&format!("{error:#}")).into_owned(), |()| "ok".into());
    // A guest that does not listen any more has its verdict all the same.
    let _ = stream.write_all(format!("{answer}\n").as_bytes());
    verdict.map(|()| true)
}

/// Reads up to the end of a line, within `limit` in all; `None` if the run is over first.
fn read_line(
    mut stream: &UnixStream,
    limit: Duration,
    over: &AtomicBool,
) -> io::Result<Option<String>> {
    let deadline = Instant::now() + limit;
    let (mut line, mut piece) = (Vec::new(), [0; 4096]);
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut piece) {
            Ok(length) => {
                line.extend(&piece[..length]);
                let ended = length == 0 || piece[..length].contains(&b'\n');
                if ended || line.len() > LONGEST {
                    return String::from_utf8(line).map(Some).map_err(io::Error::other);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(PERIOD);
            }
            Err(error) => return Err(error),
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(None)
}

#[derive(Deserialize)]
struct Shown {
    tee: kbs_types::Tee,
    evidence: serde_json::Value,
}

/// What evidence has to say.
enum Expected {
    Snp { measurement: [u8; 48], host_data: [u8; 32], policy: SnpPolicy },
    Tdx { mrtd: [u8; 48], policy: TdxPolicy },
}

impl Expected {
    fn of(plan: &LaunchPlan) -> anyhow::Result<Self> {
        Ok(match &plan.policy {
            Policy::Plain => {
                bail!("--attest is for SEV-SNP and TDX: a plain guest has no evidence")
            }
            Policy::Snp(policy) => Self::Snp {
                measurement: snp::measure(plan)?.launch_digest().0,
                host_data: plan.identity.host_data,
                policy: policy.clone(),
            },
            Policy::Tdx(policy) => {
                Self::Tdx { mrtd: tdx::mrtd(plan, PageOrder::PerPage)?.0, policy: policy.clone() }
            }
        })
    }

    /// Whether a line of evidence over `report_data` says all that it has to.
    fn compare(&self, line: &str, report_data: &[u8; 64]) -> anyhow::Result<()> {
        let shown: Shown = serde_json::from_str(line).context("the guest shows no evidence")?;
        let evidence = Evidence::from_json(shown.tee, &shown.evidence)
            .context("the guest shows no evidence")?;
        let differences: Vec<_> = match (self, &evidence) {
            (Self::Snp { measurement, host_data, policy }, Evidence::Snp { report, .. }) => {
                let report = Report::parse(report).context("the guest shows no report")?;
                let guest_policy = policy.guest_policy.to_be_bytes();
                vec![
                    difference("MEASUREMENT", &report.measurement, measurement),
                    difference("HOST_DATA", &report.host_data, host_data),
                    difference("REPORT_DATA", &report.report_data, report_data),
                    difference("POLICY", &report.policy.get().to_be_bytes(), &guest_policy),
                ]
            }
            (Self::Tdx { mrtd, policy }, Evidence::Tdx { quote, .. }) => {
                let report = td_report(quote).context("the guest shows no quote")?;
                let attributes = policy.attributes.to_le_bytes();
                vec![
                    difference("MRTD", &report.mrtd, mrtd),
                    difference("MRCONFIGID", &report.mrconfigid, &policy.mrconfigid),
                    difference("MROWNER", &report.mrowner, &policy.mrowner),
                    difference("MROWNERCONFIG", &report.mrownerconfig, &policy.mrownerconfig),
                    difference("TDATTRIBUTES", &report.td_attributes, &attributes),
                    difference("REPORTDATA", &report.report_data, report_data),
                ]
            }
            _ => bail!("the guest shows evidence of another platform"),
        };
        let differences: Vec<_> = differences.into_iter().flatten().collect();
        ensure!(
            differences.is_empty(),
            "the guest's evidence is not that of what was launched: {}",
            differences.join("; ")
        );
        Ok(())
    }
}

/// In words, if there is one.
fn difference<const N: usize>(name: &str, found: &[u8; N], expected: &[u8; N]) -> Option<String> {
    (found != expected).then(|| format!("{name} is {} and not {}", Hex(*found), Hex(*expected)))
}

#[cfg(test)]
mod tests {
    use casemate_verify::snp::REPORT_LEN;
    use serde_json::json;

    use super::*;

    /// A report whose every byte is its place.
    fn report() -> Vec<u8> {
        (0..REPORT_LEN).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    fn expected(report: &Report) -> Expected {
        let (measurement, host_data) = (report.measurement, report.host_data);
        let policy = SnpPolicy { guest_policy: report.policy.get(), vmsa_features: 1 };
        Expected::Snp { measurement, host_data, policy }
    }

    fn line(report: Vec<u8>) -> String {
        let evidence = Evidence::Snp { report, certificates: Vec::new() };
        json!({"tee": evidence.tee(), "evidence": evidence.to_json()}).to_string()
    }

    #[test]
    fn each_field_counts() {
        let bytes = report();
        let report = Report::parse(&bytes).unwrap();
        let (expected, report_data) = (expected(report), report.report_data);
        expected.compare(&line(bytes.clone()), &report_data).unwrap();
        for (at, name) in
            [(0x90, "MEASUREMENT"), (0xdf, "HOST_DATA"), (0x50, "REPORT_DATA"), (0x8, "POLICY")]
        {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let error = expected.compare(&line(other), &report_data).unwrap_err().to_string();
            let place = error.find(name).unwrap_or_else(|| panic!("{name}: {error}"));
            assert!(error[place..].starts_with(&format!("{name} is ")), "{error}");
        }
    }

    #[test]
    fn what_is_no_evidence_is_refused() {
        let bytes = report();
        let expected = expected(Report::parse(&bytes).unwrap());
        let tdx = json!({"tee": "tdx", "evidence": {"quote": ""}}).to_string();
        for text in ["", "{}", &line(bytes[1..].to_vec()), &tdx] {
            assert!(expected.compare(text, &[0; 64]).is_err(), "{text}");
        }
    }

    #[test]
    fn a_guest_hears_what_is_wrong() {
        let bytes = report();
        let expected = expected(Report::parse(&bytes).unwrap());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let guest = std::thread::spawn(move || {
            theirs.read_exact(&mut [0; 64]).unwrap();
            theirs.write_all((line(bytes) + "\n").as_bytes()).unwrap();
            let mut verdict = String::new();
            theirs.read_to_string(&mut verdict).unwrap();
            verdict
        });
        // The report is not over the nonce.
        let random = File::open("/dev/urandom").unwrap();
        let error =
            asked(ours, &random, &expected, &AtomicBool::new(false)).unwrap_err().to_string();
        assert_eq!(guest.join().unwrap().trim_end(), error);
        assert!(error.contains("REPORT_DATA is "), "{error}");
    }

    #[test]
    fn guest_that_sends_no_line_is_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.write_all(b"half a line").unwrap();
        let over = AtomicBool::new(true);
        assert_eq!(read_line(&ours, PATIENCE, &over).unwrap(), None, "the run is over");
        over.store(false, Ordering::Relaxed);
        let error = read_line(&ours, Duration::from_millis(1), &over).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

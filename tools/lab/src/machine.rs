//! The emulator as a process: a machine that boots or resumes, runs one job, and ends.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cache::{Cache, CacheError};
use crate::chip::Chip;
use crate::emulator::{Emulator, short_hash};
use crate::host::Host;
use crate::lab::{LabError, Output, Terminal};
use crate::patience::Patience;
use crate::process::{ProcessError, last_lines};
use crate::progress::say;
use crate::script;
use crate::state;

/// What a machine prints when it goes on after its state was loaded.
const RESUMED: &str = "lab: resumed";

/// An emulated host that can be started, any number of times at once.
pub(crate) struct Machine {
    pub(crate) cache: Cache,
    pub(crate) emulator: Emulator,
    pub(crate) host: Host,
    pub(crate) chip: Chip,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// What to do in it.
pub(crate) struct Job<'a> {
    pub(crate) command: &'a [&'a str],
    pub(crate) share: Option<PathBuf>,
    pub(crate) terminal: Terminal,
    pub(crate) timeout: Duration,
    pub(crate) log: Option<&'a Path>,
}

/// How the machine starts.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// From its firmware, and goes on.
    Boot,
    /// From its firmware, and waits where its state is to be saved.
    BootToSave,
    /// From a saved state.
    Resume(&'a Path),
}

impl Machine {
    /// The state in which the machine waits for a job, saved once per configuration.
    pub(crate) fn saved_state(&self) -> Result<PathBuf, LabError> {
        let configuration = format!(
            "{} {:?} {} {} {:?} {:?} {:?}",
            self.emulator.identity(),
            self.host.devices(&self.chip.as_saved(), ""),
            self.vcpus,
            self.memory_mib,
            self.kernel,
            self.initramfs,
            self.command_line(Start::BootToSave),
        );
        let name = format!("hosts/{}-{}.state", self.host, short_hash(configuration.as_bytes()));
        self.cache.get(name, |part| {
            say(format_args!(
                "starting the {} host ({}) for the first time, to save its state",
                self.host, self.emulator.origin
            ));
            let run = RunDirectory::new()?;
            let mut command = self.command(&run, None, Start::BootToSave);
            // Nobody is there yet to use the command's terminal: QMP has the standard streams.
            command.args(["-chardev", "null,id=terminal", "-qmp", "stdio"]);
            command.stderr(run.create("emulator")?);
            state::save(command, &run.path("console"), part).map_err(|reason| LabError::Save {
                reason: format!("{reason}\n{}", last_lines(&run.read("emulator"), 20)),
            })
        })
    }

    /// Runs a job, the machine resumed from `state` if there is one.
    pub(crate) fn run(&self, job: &Job<'_>, state: Option<&Path>) -> Result<Output, LabError> {
        let run = RunDirectory::new()?;
        // The terminal goes to the emulator as it is, when there is one on both ends.
        let interactive = job.terminal == Terminal::Streamed
            && io::stdin().is_terminal()
            && io::stdout().is_terminal();
        run.write("command", &script::command(job.command, self.host))?;
        run.write("clock", &since_epoch().to_string())?;
        run.write(
            "share",
            &job.share.as_ref().map_or(String::new(), |path| path.display().to_string()),
        )?;
        run.write("visible", &script::visible(job.command))?;
        run.write("terminal", &if interactive { script::terminal_size() } else { String::new() })?;
        let start = state.map_or(Start::Boot, Start::Resume);
        let mut command = self.command(&run, job.share.as_deref(), start);
        command.args(["-chardev", "stdio,id=terminal,signal=off"]);
        command.stderr(run.create("emulator")?);
        if interactive {
            command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
        } else {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        let mut child = Running(spawn(&mut command)?);
        let reader = child.0.stdout.take().map(|mut out| {
            let terminal = job.terminal;
            thread::spawn(move || collect(&mut out, terminal))
        });
        let mut patience = Patience::new(child.0.id(), job.timeout);
        if state.is_some() {
            go_on(&run, &mut child.0, &mut patience);
        }
        let ended = child
            .wait(|| patience.is_over())
            .map_err(CacheError::io("waiting for", "the emulator"))?;
        drop(child);
        let console = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        if let Some(directory) = job.log {
            run.keep_logs(directory)?;
        }
        let Some(status) = ended else {
            return Err(LabError::TimedOut {
                limit: job.timeout,
                console: last_lines(&(run.read("console") + &console), 60),
            });
        };
        match run.read("status").trim().parse() {
            Ok(status) => Ok(Output {
                status,
                console,
                kernel_log: run.read("dmesg"),
                platform_log: run.read("platform"),
                time: Duration::ZERO,
            }),
            Err(_) => Err(LabError::Died {
                status: status.to_string(),
                console: last_lines(&(run.read("console") + &run.read("emulator")), 60),
            }),
        }
    }

    fn command(&self, run: &RunDirectory, share: Option<&Path>, start: Start<'_>) -> Command {
        let mut command = self.emulator.command();
        // One thread for all processors: one that waits for another lets it run, rather than compete
        // with it, and with other machines, for this machine's.
        command
            .args(["-accel", "tcg,thread=single,tb-size=512"])
            .args(["-machine", self.host.machine(), "-cpu", self.host.processor()])
            .args(["-smp", &self.vcpus.to_string(), "-m", &format!("{}M", self.memory_mib)])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &self.command_line(start)])
            .args(["-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"]);
        let console = format!(
            "socket,id=console,server=on,wait=off,path={},logfile={}",
            run.option("console.socket"),
            run.option("console")
        );
        command.args([
            "-chardev",
            &console,
            "-serial",
            "chardev:console",
            "-serial",
            "chardev:terminal",
        ]);
        for device in self.host.devices(&self.chip, &run.option("platform")) {
            command.args(["-device", &device]);
        }
        let control = run.option("");
        // A machine that resumes must have all devices that it was saved with.
        let share = share.map_or(control.clone(), option);
        for (tag, path, how) in [
            ("host", "/", ",readonly=on,multidevs=remap"),
            ("control", &control, ""),
            ("share", &share, ",multidevs=remap"),
        ] {
            command
                .args(["-fsdev", &format!("local,id={tag},path={path},security_model=none{how}")]);
            command.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        if let Start::Resume(state) = start {
            command.args(["-incoming", &format!("exec:cat {}", script::quote_path(state))]);
        }
        command
    }

    fn command_line(&self, start: Start<'_>) -> String {
        let wait = if matches!(start, Start::Boot) { "" } else { "lab.wait" };
        format!(
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable nowatchdog \
             random.trust_cpu=on {} {wait}",
            self.host.kernel_arguments()
        )
    }
}

/// Tells a resumed machine to go on, until it says that it does: what comes before its state is
/// loaded is lost. A machine that has died meanwhile is found by who waits for it.
fn go_on(run: &RunDirectory, child: &mut Child, patience: &mut Patience) {
    let socket = run.path("console.socket");
    let mut stream = None;
    while !patience.is_over() && matches!(child.try_wait(), Ok(None)) {
        if run.read("console").contains(RESUMED) {
            return;
        }
        stream = stream.or_else(|| UnixStream::connect(&socket).ok());
        // What nobody reads is no failure: the console's file tells.
        if stream.as_mut().is_some_and(|stream| stream.write_all(b"go\n").is_ok()) {
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A child that does not outlive this value.
struct Running(Child);

impl Running {
    /// `None` when the time is over.
    fn wait(&mut self, mut is_over: impl FnMut() -> bool) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if is_over() {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let (Ok(None), Some(pid)) = (self.0.try_wait(), pid) {
            // The gentle way lets the emulator restore the terminal.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let start = Instant::now();
            let is_over = || start.elapsed() > Duration::from_secs(3);
            if !matches!(self.wait(is_over), Ok(Some(_))) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
    }
}

pub(crate) fn spawn(command: &mut Command) -> Result<Child, ProcessError> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|source| ProcessError::Start { program, source })
}

/// Reads all of the command's output, and passes it on if asked for.
fn collect(from: &mut impl io::Read, terminal: Terminal) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default();
        match terminal {
            Terminal::Collected => all.extend_from_slice(bytes),
            Terminal::Streamed => {
                let mut out = io::stdout().lock();
                // Whoever read it has gone; the command goes on all the same.
                let _ = out.write_all(bytes).and_then(|()| out.flush());
            }
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The files of one run: shared with the machine as `control`.
pub(crate) struct RunDirectory(tempfile::TempDir);

impl RunDirectory {
    fn new() -> Result<Self, CacheError> {
        let directory = tempfile::Builder::new().prefix("casemate-lab.").tempdir();
        Ok(Self(
            directory.map_err(CacheError::io("creating a directory in", std::env::temp_dir()))?,
        ))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path as a value in an option of the emulator's.
    fn option(&self, name: &str) -> String {
        option(&self.path(name))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CacheError> {
        let path = self.path(name);
        fs::write(&path, text).map_err(CacheError::io("writing", path))
    }

    fn create(&self, name: &str) -> Result<File, CacheError> {
        let path = self.path(name);
        File::create(&path).map_err(CacheError::io("creating", path))
    }

    /// Empty when the machine did not come to write it.
    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.path(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn keep_logs(&self, directory: &Path) -> Result<(), CacheError> {
        fs::create_dir_all(directory).map_err(CacheError::io("creating", directory))?;
        for (name, kept) in [("console", "console"), ("dmesg", "kernel"), ("platform", "platform")]
        {
            let kept = directory.join(kept);
            fs::write(&kept, self.read(name)).map_err(CacheError::io("writing", kept))?;
        }
        Ok(())
    }
}

/// In the emulator's options a comma ends a value; two are one that does not.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn since_epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

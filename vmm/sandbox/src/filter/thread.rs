//! Kinds of threads.

/// A kind of thread: of the process that holds the guest, or of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thread {
    /// The first thread: event loop, terminal, end of the run.
    Main,
    /// Serves queues of devices.
    Io,
    /// Runs a vCPU, and starts and stops devices for it.
    Vcpu,
    /// Writes to standard output or standard error.
    Writer,
    /// Carries bytes of the serial port.
    Serial,
    /// Judges evidence that the guest shows (`--attest`).
    Check,
    /// Fetches quotes and certificates.
    Quote,
    /// Waits for the other threads at the end of the run.
    Teardown,
    /// Serves secrets: all threads of a broker, which inherit what the first one has.
    Broker,
}

impl Thread {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Main,
        Self::Io,
        Self::Vcpu,
        Self::Writer,
        Self::Serial,
        Self::Check,
        Self::Quote,
        Self::Teardown,
        Self::Broker,
    ];
}

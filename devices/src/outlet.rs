//! Output that never holds its writer.
//!
//! A terminal that is stopped, a pipe that nobody reads and a file on a slow disk hold whoever writes
//! to them. vCPUs and device threads write to an [`Outlet`] instead: a bounded buffer, which a thread
//! of its own writes out. Where the buffer is full, the outlet refuses bytes, and counts those that
//! their writer gives up.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes that an outlet holds.
pub const CAPACITY: usize = 256 << 10;

/// Bytes in one call, so that a slow reader's progress shows.
const PIECE: usize = 4096;

/// One file, terminal, pipe or socket, for any number of writers.
#[derive(Clone)]
pub struct Outlet(Arc<Handle>);

/// Ends the thread with the last clone of the outlet.
struct Handle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    room: EventFd,
}

#[derive(Default)]
struct State {
    pending: VecDeque<u8>,
    /// Bytes that the thread is writing; they are not in `pending` any more.
    in_flight: usize,
    written: u64,
    lost: u64,
    /// The last failure of the file.
    error: Option<io::Error>,
    /// Somebody was refused since there was room.
    refused: bool,
    /// Nobody reads any more: all is taken and dropped.
    broken: bool,
    /// No writer is left.
    closed: bool,
}

impl Outlet {
    /// Bytes go to `file`, written by a thread called `name`, on which `setup` runs first (the sandbox).
    ///
    /// # Errors
    /// No thread or file descriptor is free, or `setup` failed.
    pub fn new(
        name: &str,
        file: File,
        setup: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Shared::new(State::default())?;
        let writer = Arc::clone(&shared);
        let thread = crate::thread::spawn(name, setup, move || writer.write_out(&file))?;
        Ok(Self(Arc::new(Handle { shared, thread: Some(thread) })))
    }

    /// Bytes go nowhere.
    ///
    /// # Errors
    /// If the process has no more file descriptors.
    pub fn sink() -> io::Result<Self> {
        let shared = Shared::new(State { broken: true, ..State::default() })?;
        Ok(Self(Arc::new(Handle { shared, thread: None })))
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Takes as many of `bytes` as there is room for. Who is refused some can wait for
    /// [`Outlet::room`], or give them up and say so with [`Outlet::lose`].
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = self.shared().lock();
        if state.broken {
            return bytes.len();
        }
        let room = CAPACITY.saturating_sub(state.pending.len());
        let (taken, refused) = bytes.split_at(room.min(bytes.len()));
        let was_empty = state.pending.is_empty();
        state.pending.extend(taken);
        state.refused |= !refused.is_empty();
        if was_empty && !taken.is_empty() {
            self.shared().changed.notify_all();
        }
        taken.len()
    }

    /// Takes `message` as a whole, or counts it as lost.
    pub fn say(&self, message: &[u8]) {
        let mut state = self.shared().lock();
        if state.broken {
            return;
        }
        if message.len() > CAPACITY.saturating_sub(state.pending.len()) {
            state.lost += message.len() as u64;
            return;
        }
        state.pending.extend(message);
        self.shared().changed.notify_all();
    }

    /// A writer gave up `bytes` bytes.
    pub fn lose(&self, bytes: usize) {
        self.shared().lock().lost += bytes as u64;
    }

    /// Bytes that were given up so far, and the last failure of the file.
    #[must_use]
    pub fn lost(&self) -> (u64, Option<String>) {
        let state = self.shared().lock();
        (state.lost, state.error.as_ref().map(io::Error::to_string))
    }

    /// Bytes that were written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared().lock().written
    }

    /// Counts up when there is room again after somebody was refused.
    #[must_use]
    pub fn room(&self) -> &EventFd {
        &self.shared().room
    }

    /// Waits until there is room; `false` if nothing was written for `patience`.
    #[must_use]
    pub fn wait_for_room(&self, patience: Duration) -> bool {
        let full = |state: &State| !state.broken && state.pending.len() >= CAPACITY;
        self.shared().wait_while(patience, Duration::MAX, full)
    }

    /// Waits until all is written, but not longer than `limit`, and not if nothing was written for
    /// `patience`. Returns the bytes that are left.
    #[must_use]
    pub fn flush(&self, patience: Duration, limit: Duration) -> usize {
        let busy = |state: &State| !state.pending.is_empty() || state.in_flight > 0;
        if self.shared().wait_while(patience, limit, busy) {
            return 0;
        }
        let state = self.shared().lock();
        state.pending.len() + state.in_flight
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        // A thread that still has something to write may be held by its file: it is not waited for,
        // and ends when it has written that.
        let is_idle = state.pending.is_empty() && state.in_flight == 0;
        drop(state);
        if let Some(thread) = self.thread.take().filter(|_| is_idle) {
            // A panic of the thread has been reported by its own hook.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn new(state: State) -> io::Result<Arc<Self>> {
        let room = EventFd::new(EFD_NONBLOCK)?;
        Ok(Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), room }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `condition` to end; `false` if nothing was written for `patience`, or after `limit`.
    fn wait_while(
        &self,
        patience: Duration,
        limit: Duration,
        condition: impl Fn(&State) -> bool,
    ) -> bool {
        let began = Instant::now();
        let (mut state, mut written, mut progress) = (self.lock(), 0, began);
        while condition(&state) {
            if state.written != written {
                (written, progress) = (state.written, Instant::now());
            }
            let (idle, total) = (progress.elapsed(), began.elapsed());
            if idle >= patience || total >= limit {
                return false;
            }
            let wait = patience.saturating_sub(idle).min(limit.saturating_sub(total));
            let woken = self.changed.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The thread: writes what is pending, until nobody is left to write more.
    fn write_out(&self, mut file: &File) {
        let mut piece = Vec::with_capacity(PIECE);
        while self.take(&mut piece) {
            let mut rest = piece.as_slice();
            while !rest.is_empty() {
                match file.write(rest) {
                    Ok(0) => return self.fail(rest.len(), ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        rest = &rest[written..];
                        self.wrote(written);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => wait_to_write(file),
                    Err(error) if error.kind() == ErrorKind::StorageFull => {
                        self.skip(rest.len(), error);
                        rest = &[];
                    }
                    Err(error) => return self.fail(rest.len(), error),
                }
            }
        }
    }

    /// Waits for the next piece; `false` when there will be none.
    fn take(&self, piece: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        while state.pending.is_empty() {
            if state.closed {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        piece.clear();
        let length = state.pending.len().min(PIECE);
        piece.extend(state.pending.drain(..length));
        state.in_flight = length;
        self.made_room(&mut state);
        true
    }

    fn wrote(&self, bytes: usize) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(bytes);
        state.written += bytes as u64;
        self.changed.notify_all();
    }

    /// The file does not take these bytes, but may take others.
    fn skip(&self, bytes: usize, error: io::Error) {
        let mut state = self.lock();
        state.lost += bytes as u64;
        state.in_flight = 0;
        state.error = Some(error);
        self.changed.notify_all();
    }

    /// The file takes nothing any more. That a reader has gone is no loss.
    fn fail(&self, bytes: usize, error: io::Error) {
        let mut state = self.lock();
        if error.kind() != ErrorKind::BrokenPipe {
            state.lost += (bytes + state.pending.len()) as u64;
            state.error = Some(error);
        }
        state.broken = true;
        state.in_flight = 0;
        state.pending = VecDeque::new();
        self.made_room(&mut state);
    }

    fn made_room(&self, state: &mut State) {
        if std::mem::take(&mut state.refused) {
            // Fails only if the count overflows, when nobody has listened 2^64 times.
            let _ = self.room.write(1);
        }
        self.changed.notify_all();
    }
}

/// Waits until `file`, which somebody made non-blocking, takes something.
fn wait_to_write(file: &File) {
    let ready = Epoll::new().and_then(|epoll| {
        let event = EpollEvent::new(EventSet::OUT, 0);
        epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event)?;
        epoll.wait(-1, &mut [EpollEvent::default()])
    });
    if ready.is_err() {
        // Without descriptors or memory for it, or after a signal: a moment later, then.
        thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    fn outlet(to: impl Into<OwnedFd>) -> Outlet {
        Outlet::new("out", File::from(to.into()), || Ok(())).unwrap()
    }

    #[test]
    fn bytes_arrive_in_order_and_flush_waits_for_them() {
        let (mut reader, writer) = io::pipe().unwrap();
        let outlet = outlet(writer);
        assert_eq!(outlet.offer(b"one "), 4);
        outlet.say(b"two");
        assert_eq!(outlet.flush(LONG, LONG), 0);
        let mut text = [0; 7];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"one two");
        assert_eq!((outlet.written(), outlet.lost()), (7, (0, None)));
    }

    #[test]
    fn full_outlet_refuses_without_waiting_and_counts_what_is_given_up() {
        let (mut reader, writer) = io::pipe().unwrap();
        let outlet = outlet(writer);
        let chunk = vec![b'x'; CAPACITY];
        let mut taken = 0;
        // The pipe and a piece in flight take some, then it is full.
        while outlet.wait_for_room(MOMENT) {
            taken += outlet.offer(&chunk);
        }
        assert_eq!(outlet.offer(b"more"), 0);
        outlet.lose(4);
        outlet.say(b"whole or not at all");
        assert_eq!(outlet.lost(), (23, None));
        assert!(outlet.flush(MOMENT, LONG) >= CAPACITY);
        let mut rest = vec![0; taken];
        reader.read_exact(&mut rest).unwrap();
        assert!(outlet.room().read().is_ok(), "the refused writer hears that there is room");
        assert_eq!(outlet.flush(LONG, LONG), 0);
    }

    #[test]
    fn reader_that_went_away_costs_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        let outlet = outlet(writer);
        drop(reader);
        for _ in 0..4 {
            assert_eq!(outlet.offer(&vec![0; CAPACITY]), CAPACITY);
            assert!(outlet.wait_for_room(LONG));
            assert_eq!(outlet.flush(LONG, LONG), 0);
        }
        assert_eq!(outlet.lost(), (0, None));
    }

    #[test]
    fn idle_outlet_leaves_no_thread_and_a_busy_one_is_not_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        let idle = outlet(writer);
        idle.say(b"text");
        assert_eq!(idle.flush(LONG, LONG), 0);
        // The thread has a share of it.
        let shared = Arc::downgrade(&idle.0.shared);
        drop(idle);
        assert!(shared.upgrade().is_none());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        // A pipe that nobody reads.
        let (_reader, writer) = io::pipe().unwrap();
        let busy = outlet(writer);
        assert_eq!(busy.offer(&vec![0; CAPACITY]), CAPACITY);
        let shared = Arc::downgrade(&busy.0.shared);
        drop(busy);
        assert!(shared.upgrade().is_some());
    }

    #[test]
    fn full_disk_is_named_and_loses_only_its_bytes() {
        let outlet = outlet(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert_eq!(outlet.offer(b"12345"), 5);
        assert_eq!(outlet.flush(LONG, LONG), 0);
        let (lost, error) = outlet.lost();
        assert_eq!(lost, 5);
        assert!(error.unwrap().contains("No space left"));
    }
}

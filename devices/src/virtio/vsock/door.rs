//! The main socket: processes of the host that connect, until they have said which port they want.
//!
//! Whoever may connect may connect often and say nothing. So few are taken at a time, each has to say
//! its line in time, and without descriptors nobody is listened to for a moment.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::greeting::{Greeting, Progress};
use super::worker::{LISTENER, TIMER, unwatch, watch};

/// Connections that are taken before others on the thread have their turn.
const TURN: usize = 16;

/// How often greetings are looked through, and how long nobody is listened to.
const TICK: Duration = Duration::from_secs(1);

pub(super) struct Door {
    listener: UnixListener,
    /// A descriptor that is given up to refuse a connection when there is no other.
    spare: Option<EventFd>,
    timer: TimerFd,
    is_ticking: bool,
    is_listening: bool,
    greetings: HashMap<RawFd, Greeting>,
}

impl Door {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        Ok(Self {
            listener,
            spare: Some(spare()?),
            timer: TimerFd::new()?,
            is_ticking: false,
            is_listening: false,
            greetings: HashMap::new(),
        })
    }

    /// Processes that have not said yet what they want.
    pub(super) fn waiting(&self) -> usize {
        self.greetings.len()
    }

    pub(super) fn has(&self, descriptor: RawFd) -> bool {
        self.greetings.contains_key(&descriptor)
    }

    pub(super) fn open(&mut self, ops: &mut EventOps<'_>) {
        let timer = Events::with_data_raw(self.timer.as_raw_fd(), TIMER, EventSet::IN);
        if let Err(error) = ops.add(timer) {
            tracing::error!(%error, "the vsock device cannot wait for its timer");
        }
        self.listen(ops);
    }

    /// Nothing wakes the worker any more.
    pub(super) fn close(&mut self, ops: &mut EventOps<'_>) {
        for greeting in self.greetings.values() {
            unwatch(greeting.stream(), ops);
        }
        self.greetings.clear();
        unwatch(&self.listener, ops);
        unwatch(&self.timer, ops);
    }

    fn listen(&mut self, ops: &mut EventOps<'_>) {
        if self.is_listening {
            return;
        }
        match ops.add(Events::with_data(&self.listener, LISTENER, EventSet::IN)) {
            Ok(()) => self.is_listening = true,
            Err(error) => {
                tracing::error!(%error, "the vsock device cannot listen to its socket");
                self.tick_later();
            }
        }
    }

    /// Processes have connected, of which `room` can stay.
    pub(super) fn accept(&mut self, mut room: usize, ops: &mut EventOps<'_>) {
        for _ in 0..TURN {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.refuse(&error, ops),
            };
            if room == 0 {
                tracing::warn!("a connection to the vsock socket is closed: there are too many");
                continue;
            }
            if let Err(error) = stream.set_nonblocking(true).and_then(|()| watch(&stream, ops)) {
                tracing::warn!(%error, "a connection to the vsock socket is closed");
                continue;
            }
            room -= 1;
            self.greetings.insert(stream.as_raw_fd(), Greeting::new(stream));
            self.tick_later();
        }
    }

    /// No connection can be taken: closes one, so that its process does not wait, and listens to nobody
    /// for a moment.
    fn refuse(&mut self, error: &io::Error, ops: &mut EventOps<'_>) {
        tracing::warn!(%error, "no connection can be taken on the vsock socket for a moment");
        if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            self.spare = None;
            drop(self.listener.accept());
            self.spare = spare().ok();
        }
        unwatch(&self.listener, ops);
        self.is_listening = false;
        self.tick_later();
    }

    /// A process has said something. Its stream, and the guest's port that it wants, once both are
    /// known.
    pub(super) fn greet(
        &mut self,
        descriptor: RawFd,
        ops: &mut EventOps<'_>,
    ) -> Option<(u32, UnixStream)> {
        let progress = self.greetings.get_mut(&descriptor)?.proceed();
        if progress == Progress::Waiting {
            return None;
        }
        let stream = self.greetings.remove(&descriptor)?.into_stream();
        let Progress::Complete(port) = progress else {
            unwatch(&stream, ops);
            return None;
        };
        Some((port, stream))
    }

    /// The timer has fired.
    pub(super) fn tick(&mut self, ops: &mut EventOps<'_>) {
        // Readable, or this would not be called; what it counted does not matter.
        let _ = self.timer.wait();
        self.is_ticking = false;
        if self.spare.is_none() {
            self.spare = spare().ok();
        }
        self.listen(ops);
        let now = Instant::now();
        self.greetings.retain(|_, greeting| {
            let stays = !greeting.is_overdue(now);
            if !stays {
                tracing::warn!("a process on the vsock socket did not say CONNECT in time");
                unwatch(greeting.stream(), ops);
            }
            stays
        });
        if !self.greetings.is_empty() || !self.is_listening {
            self.tick_later();
        }
    }

    fn tick_later(&mut self) {
        if !self.is_ticking {
            match self.timer.reset(TICK, None) {
                Ok(()) => self.is_ticking = true,
                Err(error) => tracing::error!(%error, "the vsock device cannot set its timer"),
            }
        }
    }
}

fn spare() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK)
}

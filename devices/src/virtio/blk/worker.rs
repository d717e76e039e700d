//! What serves one request queue.

use std::hint;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::super::service::{Service, Stop};
use super::super::{Chain, QueueFault, Virtqueue};
use super::OnFailure;
use super::io::{Engine, Finished, Image, Job};
use super::polling::{MOMENT, Polling};
use super::request::{Geometry, HEADER_LEN, ID_LEN, Request, SEGMENT_LEN, Status};
use crate::rate_limit::Throttle;

/// How often a queue is looked at before others on the same thread get their turn.
const ROUNDS: usize = 16;

/// Event data: what has happened.
const WORK: u32 = 0;
const TIMER: u32 = 1;

/// Engines without work. They are made while the host still allows it, and outlive resets.
pub(super) type Engines = Arc<Mutex<Vec<Engine>>>;

/// What the queues of an activated disk share.
pub(super) struct Session {
    pub(super) image: Arc<Image>,
    pub(super) read_only: bool,
    pub(super) serial: [u8; ID_LEN],
    /// The image's, for messages.
    pub(super) name: String,
    pub(super) on_failure: Option<OnFailure>,
    /// The driver will not flush: each write must be stable when it is done.
    pub(super) durable: bool,
    pub(super) service: Service,
}

pub(super) struct Worker {
    session: Arc<Session>,
    queue: Virtqueue,
    engine: Engine,
    engines: Engines,
    throttle: Throttle,
    polling: Polling,
}

impl Worker {
    /// Serves `queue` with one of `engines`.
    pub(super) fn new(
        session: &Arc<Session>,
        queue: Virtqueue,
        engines: &Engines,
        throttle: Throttle,
    ) -> io::Result<Self> {
        let engine = engines.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Self {
            session: Arc::clone(session),
            queue,
            engine: engine.ok_or_else(|| io::Error::other("no engine for another queue"))?,
            engines: Arc::clone(engines),
            throttle,
            polling: Polling::default(),
        })
    }

    fn serve(&mut self) -> Result<(), Stop> {
        for _ in 0..ROUNDS {
            self.queue.disable_notification()?;
            let all = self.take_requests()?;
            self.engine.submit()?;
            while let Some(done) = self.engine.next_finished() {
                self.finish(done)?;
            }
            self.queue.notify_if_needed()?;
            // The timer resumes what the rate limit holds back.
            if !all {
                return Ok(());
            }
            if self.polling.pays() && self.engine.is_idle() && self.waits_awake()? {
                continue;
            }
            if !self.queue.enable_notification()? {
                self.polling.sleeps();
                return Ok(());
            }
        }
        // The driver keeps up with us: go on, but after the others.
        Ok(self.queue.kick().write(1)?)
    }

    /// Waits a moment for a request; whether one came.
    fn waits_awake(&mut self) -> Result<bool, QueueFault> {
        let began = Instant::now();
        while began.elapsed() < MOMENT {
            if self.queue.has_more()? {
                return Ok(true);
            }
            hint::spin_loop();
        }
        self.polling.in_vain();
        Ok(false)
    }

    /// Takes requests from the queue until there is none, at most as many as it holds (`true`), or the
    /// rate limit forbids more.
    fn take_requests(&mut self) -> Result<bool, Stop> {
        for _ in 0..self.queue.size() {
            if !self.throttle.may_begin()? {
                return Ok(false);
            }
            let Some(chain) = self.queue.next_chain()? else { break };
            self.begin(chain)?;
        }
        Ok(true)
    }

    fn begin(&mut self, chain: Chain) -> Result<(), QueueFault> {
        let readable = chain.readable_len().checked_sub(HEADER_LEN);
        let readable = readable.ok_or_else(|| chain.malformed("no room for a request header"))?;
        let writable = chain.writable_len().checked_sub(1);
        let writable = writable.ok_or_else(|| chain.malformed("no room for a status byte"))?;
        let mut head = [0; (HEADER_LEN + SEGMENT_LEN) as usize];
        let head = &mut head[..(HEADER_LEN + readable.min(SEGMENT_LEN)) as usize];
        chain.read(self.queue.memory(), 0, head)?;
        self.throttle.charge(u64::from(readable) + u64::from(writable));
        let Session { image, read_only, serial, durable, .. } = &*self.session;
        let geometry = Geometry { sectors: image.sectors(), read_only: *read_only };
        match Request::parse(head, readable.into(), writable.into(), &geometry) {
            Err(status) => self.complete(chain, status),
            Ok(Request::Identify) => {
                let len = serial.len().min(writable as usize);
                chain.write(self.queue.memory(), 0, &serial[..len])?;
                self.complete(chain, Status::Ok)
            }
            Ok(request) => {
                let job = Job::new(chain, request, *durable, self.queue.memory(), image)?;
                self.engine.add(job).map_or(Ok(()), |done| self.finish(done))
            }
        }
    }

    fn finish(&mut self, done: Finished) -> Result<(), QueueFault> {
        let Finished { chain, attempt, result } = done;
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                let name = &self.session.name;
                let message = format!("disk {name}: the host failed a {attempt}: {error}");
                tracing::warn!("{message}");
                if let Some(on_failure) = &self.session.on_failure {
                    on_failure(message);
                    // The run is over: the guest is to see nothing of it.
                    return Ok(());
                }
                Status::IoError
            }
        };
        self.complete(chain, status)
    }

    /// Answers a request: its last byte is its status.
    fn complete(&mut self, chain: Chain, status: Status) -> Result<(), QueueFault> {
        let len = chain.writable_len();
        chain.write(self.queue.memory(), len.saturating_sub(1), &[status as u8])?;
        self.queue.complete(chain, len)
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let completions = self.engine.event().map(AsRawFd::as_raw_fd);
        let sources = [Some(self.queue.kick().as_raw_fd()), completions];
        for source in sources.into_iter().flatten() {
            self.session.service.listen(ops, self.queue.index(), source, WORK);
        }
        let timer = self.throttle.as_raw_fd();
        self.session.service.listen(ops, self.queue.index(), timer, TIMER);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if self.session.service.is_stopped() {
            return;
        }
        let timer = events.data() == TIMER;
        if events.fd() == self.queue.kick().as_raw_fd() {
            self.polling.woken();
        }
        let resumed = if timer { self.throttle.timer_fired() } else { Ok(()) };
        let served = resumed.map_err(Stop::Host).and_then(|()| self.serve());
        self.session.service.check(self.queue.index(), served);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.engine.abandon();
        let engine = std::mem::replace(&mut self.engine, Engine::plain(&self.session.image));
        self.engines.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
    }
}

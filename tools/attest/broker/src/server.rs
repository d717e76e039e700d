//! Threads, limits and time: from connections to requests.

use std::io::Write as _;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{Broker, error_body};
use crate::http::{Answer, read_request};
use crate::listen::{Connection, Listener, Timed};
use crate::rate::RateLimit;
use casemate_verify::Timestamp;

/// How much a broker does at a time.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Requests that are answered at a time. As many more wait; what comes beyond is turned away.
    pub workers: usize,
    /// How long a request may take from the first byte to the last of its answer.
    pub timeout: Duration,
    /// Requests per second and peer, on average.
    pub rate: u32,
    /// Requests per peer at once.
    pub burst: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { workers: 16, timeout: Duration::from_secs(10), rate: 20, burst: 60 }
    }
}

/// A connection that waits for a worker.
struct Waiting {
    connection: Connection,
    peer: String,
    since: Instant,
}

/// Answers requests at all listeners, for as long as the process lives.
pub fn serve(broker: &Broker, listeners: Vec<Listener>, settings: Settings) {
    let (sender, receiver) = sync_channel(settings.workers);
    let receiver = Mutex::new(receiver);
    let limit = RateLimit::new(settings.rate, settings.burst);
    thread::scope(|scope| {
        for _ in 0..settings.workers {
            scope.spawn(|| work(broker, &receiver, settings.timeout));
        }
        for listener in listeners {
            let (sender, limit) = (sender.clone(), &limit);
            scope.spawn(move || accept(&listener, &sender, limit));
        }
        drop(sender);
    });
}

fn accept(listener: &Listener, sender: &SyncSender<Waiting>, limit: &RateLimit) {
    loop {
        let (connection, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, or the peer gave up: both pass.
                tracing::warn!("could not accept at {}: {error}", listener.address());
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let since = Instant::now();
        if !limit.allows(&peer, since) {
            turn_away(connection, 429, "too many requests: wait a second");
            continue;
        }
        match sender.try_send(Waiting { connection, peer, since }) {
            Ok(()) => {}
            Err(TrySendError::Full(waiting)) => {
                turn_away(waiting.connection, 503, "the broker is busy: try again later");
            }
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// Says no without reading. The few bytes fit into any socket's buffer, so this does not wait.
fn turn_away(connection: Connection, status: u16, detail: &str) {
    let mut stream = Timed::new(connection, Instant::now() + Duration::from_millis(100));
    let body = error_body("Busy", detail);
    let answer = Answer { status, session: None, signature: None, body };
    // A peer that does not listen misses nothing.
    let _ = answer.write(&mut stream);
}

fn work(broker: &Broker, receiver: &Mutex<Receiver<Waiting>>, timeout: Duration) {
    loop {
        let received = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Waiting { connection, peer, since }) = received else { return };
        let mut stream = Timed::new(connection, since + timeout);
        let answer = match read_request(&mut stream) {
            Ok((head, body)) => {
                broker.answer(&head, &body, &peer, Instant::now(), Timestamp::now())
            }
            Err(error) => Answer {
                status: error.status(),
                session: None,
                signature: None,
                body: error_body("Request", &error.to_string()),
            },
        };
        // A peer that left gets nothing; a release to it is written down all the same.
        let _ = answer.write(&mut stream).and_then(|()| stream.flush());
    }
}

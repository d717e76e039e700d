//! Threads, limits and time: from connections to requests.
//!
//! Each connection has a thread, which waits for the request without holding up anything but itself.
//! Requests that arrived take turns to be answered. A peer that is slow, or sends much, waits for itself.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use casemate_foreign::one_line;
use casemate_verify::Timestamp;
use socket2::Socket;

use crate::broker::{Broker, error_body};
use crate::connections::{Connections, Place};
use crate::http::{Answer, read_request};
use crate::listen::{Listener, Timed};
use crate::peer::{Peer, TrustedProxies};
use crate::rate::RateLimit;
use crate::turns::Turns;

/// Stack of a connection's thread, in bytes: evidence is judged on it.
const STACK: usize = 1 << 20;

/// How much a broker does at a time.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests that are answered at a time.
    pub workers: usize,
    /// How long a request may take to arrive, to have its turn, and to have its answer taken: each.
    pub timeout: Duration,
    /// Requests per second and peer, on average.
    pub rate: u32,
    /// Requests per peer at once.
    pub burst: u32,
    /// Open connections.
    pub connections: usize,
    /// Open connections per peer.
    pub connections_per_peer: usize,
    /// Proxies that name their clients.
    pub proxies: TrustedProxies,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            workers: 16,
            timeout: Duration::from_secs(10),
            rate: 20,
            burst: 60,
            connections: 768,
            connections_per_peer: 64,
            proxies: TrustedProxies::default(),
        }
    }
}

/// What all threads share.
struct Service {
    broker: Arc<Broker>,
    timeout: Duration,
    proxies: TrustedProxies,
    connections: Arc<Connections>,
    limit: RateLimit,
    turns: Turns,
    /// Told when the broker cannot go on.
    end: SyncSender<()>,
}

/// Answers requests at all listeners. Returns when the broker cannot record anything any more; the
/// process should end then, so that a new one begins.
pub fn serve(broker: Arc<Broker>, listeners: Vec<Listener>, settings: &Settings) {
    let (end, ended) = sync_channel(1);
    let most_of_peer = settings.connections_per_peer;
    let service = Arc::new(Service {
        broker,
        timeout: settings.timeout,
        proxies: settings.proxies.clone(),
        connections: Arc::new(Connections::new(settings.connections, most_of_peer)),
        limit: RateLimit::new(settings.rate, settings.burst),
        turns: Turns::new(settings.workers),
        end,
    });
    for listener in listeners {
        let service = Arc::clone(&service);
        thread::spawn(move || accept(&listener, &service));
    }
    drop(service);
    // Without listeners there is nothing to wait for.
    let _ = ended.recv();
}

fn accept(listener: &Listener, service: &Arc<Service>) {
    loop {
        match listener.accept() {
            Ok((connection, peer)) => begin(service, Arc::new(connection), peer),
            Err(error) => {
                tracing::warn!("could not accept at {}: {error}", listener.address());
                // Too many open files, or the peer gave up: both pass.
                if !service.connections.close_one() {
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

fn begin(service: &Arc<Service>, connection: Arc<Socket>, peer: Peer) {
    let is_proxy = service.proxies.contains(&peer);
    let Some(place) = service.connections.admit(&connection, &peer, is_proxy) else {
        turn_away(connection);
        return;
    };
    let service = Arc::clone(service);
    let thread = thread::Builder::new().stack_size(STACK);
    let begun = thread.spawn(move || service.converse(&connection, &peer, &place));
    if let Err(error) = begun {
        tracing::warn!("could not begin a thread for a connection: {error}");
    }
}

/// Refuses without reading. The few bytes fit into any socket's buffer, so this does not wait.
fn turn_away(connection: Arc<Socket>) {
    let mut stream = Timed::new(connection, Instant::now() + Duration::from_millis(100));
    // A peer that does not listen misses nothing.
    let _ = busy(503, "the broker is busy: try again later").write(&mut stream);
}

fn busy(status: u16, detail: &str) -> Answer {
    Answer { status, body: error_body("Busy", detail), ..Answer::default() }
}

impl Service {
    /// One request and its answer.
    fn converse(&self, connection: &Arc<Socket>, peer: &Peer, place: &Place) {
        let timed = || Timed::new(Arc::clone(connection), Instant::now() + self.timeout);
        let answer = match read_request(&mut timed(), |length| place.expect_body(length)) {
            Ok((head, body)) => {
                let peer = self.proxies.client(peer, &head);
                place.arrived(&peer);
                self.answer(&peer, |now| {
                    self.broker.answer(&head, &body, &peer, now, Timestamp::now())
                })
            }
            Err(error) => {
                place.arrived(peer);
                let detail = one_line(&error.to_string()).into_owned();
                let body = error_body("Request", &detail);
                Answer { status: error.status(), body, ..Answer::default() }
            }
        };
        // A peer that left gets nothing; a release to it is written down all the same.
        let _: io::Result<()> = answer.write(&mut timed());
        if self.broker.is_broken() {
            // Full when somebody else has said so.
            let _ = self.end.try_send(());
        }
    }

    /// What `judge` answers, when the peer may ask and it is its turn.
    fn answer(&self, peer: &Peer, judge: impl FnOnce(Instant) -> Answer) -> Answer {
        if !self.limit.allows(peer, Instant::now()) {
            return busy(429, "too many requests: wait a second");
        }
        match self.turns.take(peer, Instant::now() + self.timeout) {
            Some(_turn) => judge(Instant::now()),
            None => busy(503, "the broker is busy: try again later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::seal::StoreKey;
    use crate::store::Store;
    use crate::verifier::Verifier;

    #[test]
    fn a_broker_that_cannot_record_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let store = Store::open(&path("store"), StoreKey::generate().unwrap()).unwrap();
        let broker = Arc::new(Broker::new(store, Verifier::default(), &path("log")).unwrap());
        let address = format!("unix:{}", path("socket").display()).parse().unwrap();
        let listeners = vec![Listener::bind(&address).unwrap()];
        let serving = Arc::clone(&broker);
        let thread = thread::spawn(move || serve(serving, listeners, &Settings::default()));
        let ask = || {
            let mut stream = UnixStream::connect(path("socket")).unwrap();
            stream.write_all(b"GET /kbs/v0/resource/a/b/c HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        };
        ask();
        assert!(!thread.is_finished());
        broker.break_log();
        ask();
        thread.join().unwrap();
    }
}

//! Good guests beside hostile peers: every good request is answered, whatever the others do.
//!
//! Each peer is an address of the loopback. All counts are bounded, and the test fails by counts, not by
//! time: its timeouts are those of a test that hangs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use casemate_broker::{Listener, Settings, TrustedProxies, serve};
use casemate_protocol::{COOKIE, TeeKey};
use common::{Folder, Guest, ID, SECRET, attestation};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

const GUESTS: u8 = 200;
const HOSTILE: u8 = 100;
/// What each hostile peer does at most.
const ACTIONS: usize = 150;
const HANGS: Duration = Duration::from_secs(300);

/// A broker on the loopback, with the settings of a real one but for the time of a test that hangs.
fn start(folder: &Folder, settings: Settings) -> SocketAddr {
    let broker = folder.broker();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().to_string().strip_prefix("tcp:").unwrap().parse().unwrap();
    std::thread::spawn(move || serve(broker.into(), vec![listener], &settings));
    address
}

fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(HANGS))?;
    stream.set_write_timeout(Some(HANGS))?;
    Ok(stream)
}

/// A peer that makes requests, and for whom it says that it makes them.
#[derive(Clone, Copy)]
struct Client {
    from: Ipv4Addr,
    to: SocketAddr,
    forwarded_for: Option<Ipv4Addr>,
}

struct Answer {
    status: u16,
    session: Option<String>,
    body: Value,
}

impl Client {
    fn ask(
        &self,
        method: &str,
        path: &str,
        session: &str,
        body: &Value,
    ) -> std::io::Result<Answer> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let forwarded = self.forwarded_for.map(|client| format!("X-Forwarded-For: {client}\r\n"));
        let request = format!(
            "{method} /kbs/v0/{path} HTTP/1.1\r\nCookie: {COOKIE}={session}\r\n{}Content-Length: {}\r\n\r\n{body}",
            forwarded.unwrap_or_default(),
            body.len()
        );
        let mut stream = connect(self.from, self.to)?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let broken = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
        let cookie = head.split(&format!("{COOKIE}=")).nth(1);
        Ok(Answer {
            status: head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .ok_or_else(broken)?,
            session: cookie.and_then(|rest| rest.split(';').next()).map(str::to_owned),
            body: serde_json::from_str(body).unwrap_or_default(),
        })
    }

    fn begin(&self) -> std::io::Result<Answer> {
        let request = json!({"version": "0.4.0", "tee": "snp", "extra-params": {}});
        self.ask("POST", "auth", "none", &request)
    }

    /// What a good guest does: three requests, each once. The error says which one failed, and how.
    fn fetch(&self) -> Result<(), String> {
        let granted = |step: &str, answer: std::io::Result<Answer>| {
            let answer = answer.map_err(|error| format!("{step}: {error}"))?;
            let Answer { status, body, .. } = &answer;
            if *status == 200 { Ok(answer) } else { Err(format!("{step}: {status} {body}")) }
        };
        let challenge = granted("auth", self.begin())?;
        let session = challenge.session.ok_or("auth: no session")?;
        let nonce = challenge.body["nonce"].as_str().ok_or("auth: no nonce")?;
        let key = TeeKey::generate().unwrap();
        let message = attestation(&Guest::good(), nonce, key.public());
        granted("attest", self.ask("POST", "attest", &session, &message))?;
        let resource = self.ask("GET", &format!("resource/{ID}"), &session, &Value::Null);
        let secret = granted("resource", resource)?.body;
        let opened = key.open(serde_json::from_value(secret).unwrap()).unwrap();
        assert_eq!(opened.as_slice(), SECRET.as_bytes());
        Ok(())
    }

    /// What a hostile peer does, over and over, until the good ones are done.
    fn attack(&self, done: &AtomicBool) -> usize {
        let mut held = Vec::new();
        let mut actions = 0;
        while actions < ACTIONS && !done.load(Ordering::Relaxed) {
            match actions % 5 {
                // Connections that send nothing, or a part, and stay.
                0 | 1 => held.extend(connect(self.from, self.to).ok().map(|mut stream| {
                    let _ = stream.write_all(if actions.is_multiple_of(5) {
                        b"P"
                    } else {
                        b"POST /kbs/v0/attest HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n{"
                    });
                    stream
                })),
                // Sessions that nobody attests.
                2 => drop(self.begin()),
                // Evidence that is none, for a session that is one.
                3 => {
                    let session = self.begin().ok().and_then(|answer| answer.session);
                    let key = TeeKey::generate().unwrap();
                    let message = attestation(&Guest::good(), "bm9uY2U=", key.public());
                    let _ = self.ask("POST", "attest", &session.unwrap_or_default(), &message);
                }
                _ => drop(self.ask("GET", &format!("resource/{ID}"), "invented", &Value::Null)),
            }
            actions += 1;
        }
        actions
    }
}

/// One process has both ends of all connections.
fn allow_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn good_guests_are_served_beside_hostile_peers() {
    allow_files();
    let folder = Folder::new();
    let to = start(&folder, Settings { timeout: HANGS, ..Settings::default() });
    let client = |second, number| Client {
        from: Ipv4Addr::new(127, second, 0, number),
        to,
        forwarded_for: None,
    };
    let (done, attacks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let failed: Vec<String> = std::thread::scope(|scope| {
        for number in 0..HOSTILE {
            let (done, attacks) = (&done, &attacks);
            scope.spawn(move || {
                attacks.fetch_add(client(2, number).attack(done), Ordering::Relaxed)
            });
        }
        let good: Vec<_> =
            (0..GUESTS).map(|number| scope.spawn(move || client(1, number).fetch())).collect();
        let failed = good.into_iter().filter_map(|guest| guest.join().unwrap().err()).collect();
        done.store(true, Ordering::Relaxed);
        failed
    });
    println!(
        "{GUESTS} good guests beside {HOSTILE} hostile peers: {} failed; {} hostile actions, {:.1} s",
        failed.len(),
        attacks.into_inner(),
        begun.elapsed().as_secs_f64()
    );
    assert!(failed.is_empty(), "{failed:?}");
    let log = std::fs::read(folder.log()).unwrap();
    let (head, key) = (folder.store().audit_head().unwrap(), folder.store().audit_key());
    let summary = casemate_broker::audit::verify(log.as_slice(), Some(&head), Some(&key)).unwrap();
    assert_eq!(summary.releases, u64::from(GUESTS));
}

#[test]
fn guests_behind_a_named_proxy_are_peers_of_their_own() {
    allow_files();
    let folder = Folder::new();
    let networks = vec!["127.3.0.1".parse().unwrap()];
    let proxies = TrustedProxies { networks, ..TrustedProxies::default() };
    let to = start(&folder, Settings { timeout: HANGS, proxies, ..Settings::default() });
    let from = Ipv4Addr::new(127, 3, 0, 1);
    let failed: Vec<_> = std::thread::scope(|scope| {
        let guests: Vec<_> = (0..60)
            .map(|number| Client { from, to, forwarded_for: Some(Ipv4Addr::new(10, 0, 0, number)) })
            .map(|guest| scope.spawn(move || guest.fetch()))
            .collect();
        guests.into_iter().filter_map(|guest| guest.join().unwrap().err()).collect()
    });
    assert!(failed.is_empty(), "{failed:?}");
    let records = folder.records();
    assert_eq!(records.len(), 60);
    assert!(records.iter().any(|record| record["peer"] == "tcp:10.0.0.59"), "{records:?}");
    // Nobody else names clients.
    let stranger = Client {
        from: Ipv4Addr::new(127, 3, 0, 2),
        to,
        forwarded_for: Some(Ipv4Addr::new(10, 9, 9, 9)),
    };
    stranger.fetch().unwrap();
    assert_eq!(folder.records().last().unwrap()["peer"], "tcp:127.3.0.2");
}

//! The agent and the broker over sockets, and peers that are neither.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use casemate_agent::{Address, FetchError, fetch};
use casemate_broker::{Listener, Settings, serve};
use common::{Folder, Guest, ID, SECRET};
use proptest::prelude::*;

/// A broker that answers until the test process ends. TCP and, as a VMM forwards vsock, a socket.
fn start(folder: &Folder, settings: Settings) -> (Address, Address) {
    let broker = folder.broker();
    let unix = folder.path("broker.sock");
    let listeners = ["tcp:127.0.0.1:0".to_owned(), format!("unix:{}", unix.display())]
        .map(|address| Listener::bind(&address.parse().unwrap()).unwrap());
    let tcp = listeners[0].address().to_string().parse().unwrap();
    std::thread::spawn(move || serve(broker.into(), listeners.into(), &settings));
    (tcp, Address::Unix(unix))
}

fn socket(address: &Address) -> TcpStream {
    let Address::Tcp(address) = address else { panic!("{address} is not TCP") };
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Settings for tests that ask a lot.
fn unlimited() -> Settings {
    Settings { rate: 100_000, burst: 100_000, ..Settings::default() }
}

#[test]
fn an_agent_gets_its_secret_over_either_socket() {
    let folder = Folder::new();
    let (tcp, unix) = start(&folder, Settings::default());
    let trusted = folder.trusted();
    for address in [&tcp, &unix] {
        let secret = fetch(address, &Guest::good(), &trusted, ID).unwrap();
        assert_eq!(secret.as_slice(), SECRET.as_bytes());
    }
    let bad = Guest { command_line: "console=ttyS0", ..Guest::good() };
    let error = fetch(&unix, &bad, &trusted, ID).unwrap_err();
    assert!(matches!(error, FetchError::Refused { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("measurement"), "{error}");
    let error = fetch(&tcp, &Guest::good(), &trusted, "default/disk/other").unwrap_err();
    assert!(matches!(error, FetchError::Refused { status: 404, .. }), "{error}");
    let peers: Vec<_> = folder.records().iter().map(|record| record["peer"].clone()).collect();
    assert_eq!(peers[0], "tcp:127.0.0.1");
    assert!(peers[1].as_str().unwrap().starts_with("unix:"), "{peers:?}");
}

#[test]
fn many_agents_at_once_each_get_theirs_and_the_log_stays_whole() {
    let folder = Folder::new();
    let (tcp, unix) = start(&folder, unlimited());
    let trusted = &folder.trusted();
    std::thread::scope(|scope| {
        for number in 0..12 {
            let address = if number % 2 == 0 { &tcp } else { &unix };
            scope.spawn(move || fetch(address, &Guest::good(), trusted, ID).unwrap());
        }
    });
    let log = std::fs::read(folder.log()).unwrap();
    let (head, key) = (folder.store().audit_head().unwrap(), folder.store().audit_key());
    let summary = casemate_broker::audit::verify(log.as_slice(), Some(&head), Some(&key)).unwrap();
    assert_eq!((summary.releases, summary.head.records), (12, 12));
}

#[test]
fn slow_silent_and_rude_peers_do_not_stop_the_others() {
    let folder = Folder::new();
    let settings = Settings { workers: 2, timeout: Duration::from_millis(1500), ..unlimited() };
    let (tcp, unix) = start(&folder, settings);
    // As many silent peers as there are workers, one that sends a byte at a time, and some that go.
    let silent: Vec<_> = (0..2).map(|_| socket(&tcp)).collect();
    for _ in 0..3 {
        socket(&tcp)
            .write_all(b"POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
            .unwrap();
    }
    let begun = Instant::now();
    let mut drop_by_drop = socket(&tcp);
    while drop_by_drop.write_all(b"a").is_ok() && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "a request may take 1.5 s");
    let secret = fetch(&unix, &Guest::good(), &folder.trusted(), ID).unwrap();
    assert_eq!(secret.as_slice(), SECRET.as_bytes());
    drop(silent);
}

#[test]
fn who_asks_too_often_is_turned_away_and_may_come_again() {
    let folder = Folder::new();
    let (tcp, _) = start(&folder, Settings { rate: 5, burst: 2, ..Settings::default() });
    let status = || {
        let mut stream = socket(&tcp);
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!([status(), status()], ["404", "404"]);
    // A refused peer that still writes may find its connection reset before it reads why.
    assert!(["429", ""].contains(&status().as_str()));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(status(), "404");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a peer sends, it gets an answer that is not a success, or the connection's end; and
    /// the broker goes on.
    #[test]
    fn malformed_requests_are_answered_or_cut_off(
        garbage in proptest::collection::vec(any::<u8>(), 0..600),
        method in "(GET|POST|PUT|[A-Z]{1,8})",
        path in "(/kbs/v0/(auth|attest|resource/a/b/c)|/[ -~]{0,40})",
        length in prop_oneof![Just(None), (0_usize..3_000_000).prop_map(Some)],
        raw in any::<bool>(),
    ) {
        use std::sync::OnceLock;
        static BROKER: OnceLock<(Folder, Address, Address)> = OnceLock::new();
        let (_, _, unix) = BROKER.get_or_init(|| {
            let folder = Folder::new();
            let settings = Settings { timeout: Duration::from_millis(300), ..unlimited() };
            let (tcp, unix) = start(&folder, settings);
            (folder, tcp, unix)
        });
        let Address::Unix(path_of_socket) = unix else { unreachable!() };
        let mut stream = UnixStream::connect(path_of_socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut message = Vec::new();
        if !raw {
            message.extend(format!("{method} {path} HTTP/1.1\r\n").into_bytes());
            if let Some(length) = length {
                message.extend(format!("Content-Length: {length}\r\n").into_bytes());
            }
            message.extend(b"\r\n");
        }
        message.extend(&garbage);
        let _ = stream.write_all(&message);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        if stream.read_to_end(&mut answer).is_ok() && !answer.is_empty() {
            let text = String::from_utf8_lossy(&answer);
            prop_assert!(text.starts_with("HTTP/1.1 4"), "{}", text);
        }
        let mut probe = UnixStream::connect(path_of_socket).unwrap();
        probe.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        probe.write_all(b"GET /kbs/v0/resource/a/b/c HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).unwrap();
        prop_assert!(answer.starts_with("HTTP/1.1 401 "), "{}", answer);
    }
}

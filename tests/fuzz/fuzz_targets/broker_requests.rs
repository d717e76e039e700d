//! Any bytes as one request after another to a broker: no answer may be a release.
#![no_main]

use std::sync::OnceLock;
use std::time::Instant;

use casemate_broker::http::read_request;
use casemate_broker::{
    Broker, Peer, ProxyHeader, ReleasePolicy, Secret, Store, StoreKey, TrustedProxies, Verifier,
};
use casemate_verify::Timestamp;
use libfuzzer_sys::fuzz_target;

static BROKER: OnceLock<Broker> = OnceLock::new();

fn broker() -> Broker {
    let folder = std::env::temp_dir().join(format!("broker-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a place for the store");
    let key = StoreKey::generate().expect("randomness");
    let store = Store::open(&folder.join("store"), key).expect("a store");
    let open = || Some("{}".into());
    let policy = ReleasePolicy { snp: open(), tdx: open(), azure: open() };
    let secret = Secret { value: b"secret".to_vec().into(), policy };
    store.put(&"a/b/c".parse().expect("an id"), &secret).expect("a secret put in");
    Broker::new(store, Verifier::default(), &folder.join("audit")).expect("a broker")
}

fuzz_target!(|bytes: &[u8]| {
    let broker = BROKER.get_or_init(broker);
    let mut session = None;
    // Requests are separated by a byte that no head has; each gets the session of the one before.
    for request in bytes.split(|byte| *byte == 0xff) {
        let Ok((mut head, body)) = read_request(&mut &request[..], |_| ()) else { continue };
        if head.session.is_some() {
            head.session.clone_from(&session);
        }
        for header in [ProxyHeader::XForwardedFor, ProxyHeader::Forwarded] {
            let networks = vec!["127.0.0.0/8".parse().expect("a network")];
            let proxy = Peer::Tcp([127, 0, 0, 1].into());
            let _ = TrustedProxies { networks, header }.client(&proxy, &head);
        }
        let at = Timestamp(1_795_305_600);
        let answer = broker.answer(&head, &body, &Peer::Vsock(3), Instant::now(), at);
        session = answer.session.or(session);
        assert!(answer.status != 200 || head.path == "/kbs/v0/auth", "{}", head.path);
    }
});

//! Sessions: a nonce that is good once and for a while, then what was attested with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use kbs_types::{Tee, TeePubKey};

use crate::evidence::GuestEvidence;
use crate::peer::Peer;
use crate::seal::random;

/// The most sessions at a time. A new one then takes the place of the oldest that never attested, of the
/// peer that has most of these; if all attested, of the oldest of the peer that has most.
const MAX_SESSIONS: usize = 4096;
/// The most memory that the evidence of all sessions may take, in bytes. New evidence then takes the place
/// of the oldest of the peer that has most.
const MAX_EVIDENCE: usize = 256 * 1024 * 1024;

/// What a session's guest has shown.
pub(crate) struct Attested {
    pub(crate) nonce: String,
    pub(crate) tee: Tee,
    pub(crate) evidence: GuestEvidence,
    /// What REPORT_DATA has to be.
    pub(crate) report_data: [u8; 64],
    /// The key that the evidence is bound to.
    pub(crate) key: TeePubKey,
    /// The token that says so, as it was given out.
    pub(crate) token: String,
}

enum State {
    /// The nonce was given out.
    Challenged {
        tee: Tee,
        nonce: String,
    },
    /// The nonce was used.
    Used,
    Attested(Arc<Attested>),
}

struct Session {
    state: State,
    ends: Instant,
    /// Who began it, as limits count peers.
    peer: Peer,
    /// Sessions that began earlier have lower numbers.
    number: u64,
}

impl Session {
    /// Bytes of its evidence.
    fn size(&self) -> usize {
        match &self.state {
            State::Attested(attested) => attested.evidence.size(),
            State::Challenged { .. } | State::Used => 0,
        }
    }

    fn is_attested(&self) -> bool {
        matches!(self.state, State::Attested(_))
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    sessions: HashMap<String, Session>,
}

impl Table {
    fn forget_ended(&mut self, now: Instant) {
        self.sessions.retain(|_, session| session.ends > now);
    }

    /// Takes out the oldest session with a weight, of the peer whose sessions weigh most.
    fn make_room(&mut self, weight: impl Fn(&Session) -> usize) -> bool {
        let mut weights: HashMap<&Peer, usize> = HashMap::new();
        for session in self.sessions.values() {
            *weights.entry(&session.peer).or_default() += weight(session);
        }
        let heaviest = weights.into_iter().max_by_key(|(_, weight)| *weight);
        let Some((peer, _)) = heaviest.filter(|(_, weight)| *weight > 0) else { return false };
        let of_peer =
            self.sessions.iter().filter(|(_, other)| other.peer == *peer && weight(other) > 0);
        let oldest = of_peer.min_by_key(|(_, session)| session.number).map(|(id, _)| id.clone());
        oldest.is_some_and(|id| self.sessions.remove(&id).is_some())
    }
}

/// A challenge that cannot be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ChallengeError {
    #[error("the session is unknown or has ended: begin again with a request")]
    Unknown,
    #[error("the nonce was used already: begin again with a request")]
    Used,
}

/// All sessions.
pub(crate) struct Sessions {
    table: Mutex<Table>,
    /// How long a nonce is good.
    nonce_lifetime: Duration,
    /// How long an attested session is good.
    pub(crate) lifetime: Duration,
}

impl Sessions {
    pub(crate) fn new(nonce_lifetime: Duration, lifetime: Duration) -> Self {
        Sessions { table: Mutex::default(), nonce_lifetime, lifetime }
    }

    /// Begins a session of `peer`: its name and its nonce. `None` when there is no randomness.
    pub(crate) fn begin(&self, tee: Tee, peer: &Peer, now: Instant) -> Option<(String, String)> {
        let id = BASE64_URL_SAFE_NO_PAD.encode(*random::<32>()?);
        let nonce = BASE64_STANDARD.encode(*random::<32>()?);
        let mut table = self.table();
        table.forget_ended(now);
        if table.sessions.len() >= MAX_SESSIONS
            && !table.make_room(|session| usize::from(!session.is_attested()))
        {
            table.make_room(|_| 1);
        }
        let number = table.next;
        table.next += 1;
        let state = State::Challenged { tee, nonce: nonce.clone() };
        let (peer, ends) = (peer.counted(), now + self.nonce_lifetime);
        table.sessions.insert(id.clone(), Session { state, ends, peer, number });
        Some((id, nonce))
    }

    /// Takes the session's kind of processor and nonce, which are thereby used up.
    pub(crate) fn take_challenge(
        &self,
        id: &str,
        now: Instant,
    ) -> Result<(Tee, String), ChallengeError> {
        let mut table = self.table();
        let session = table
            .sessions
            .get_mut(id)
            .filter(|session| session.ends > now)
            .ok_or(ChallengeError::Unknown)?;
        match std::mem::replace(&mut session.state, State::Used) {
            State::Challenged { tee, nonce } => Ok((tee, nonce)),
            other => {
                session.state = other;
                Err(ChallengeError::Used)
            }
        }
    }

    /// Notes what a session's guest has shown. `false` when the session made room for another one.
    pub(crate) fn attested(&self, id: &str, attested: Attested, now: Instant) -> bool {
        let mut table = self.table();
        table.forget_ended(now);
        let more = attested.evidence.size();
        let held = |table: &Table| table.sessions.values().map(Session::size).sum::<usize>();
        while held(&table).saturating_add(more) > MAX_EVIDENCE && table.make_room(Session::size) {}
        let Some(session) = table.sessions.get_mut(id) else { return false };
        session.state = State::Attested(Arc::new(attested));
        session.ends = now + self.lifetime;
        true
    }

    /// What was attested in the session `id`.
    pub(crate) fn by_id(&self, id: &str, now: Instant) -> Option<Arc<Attested>> {
        self.find(now, |other, _| other == id)
    }

    /// What was attested when `token` was given out.
    pub(crate) fn by_token(&self, token: &str, now: Instant) -> Option<Arc<Attested>> {
        self.find(now, |_, attested| attested.token == token)
    }

    fn find(&self, now: Instant, is_it: impl Fn(&str, &Attested) -> bool) -> Option<Arc<Attested>> {
        let table = self.table();
        let mut alive = table.sessions.iter().filter(|(_, session)| session.ends > now);
        alive.find_map(|(id, session)| match &session.state {
            State::Attested(attested) if is_it(id, attested) => Some(Arc::clone(attested)),
            _ => None,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Evidence;

    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(Duration::from_secs(60), Duration::from_secs(300))
    }

    fn attested(token: &str) -> Attested {
        Attested {
            nonce: String::new(),
            tee: Tee::Snp,
            evidence: GuestEvidence::Bare(Evidence::Snp { report: vec![], certificates: vec![] }),
            report_data: [0; 64],
            key: TeePubKey::AKP { alg: String::new(), public_key: String::new() },
            token: token.to_owned(),
        }
    }

    #[test]
    fn a_nonce_is_good_once() {
        let (sessions, now) = (sessions(), Instant::now());
        let (id, nonce) = sessions.begin(Tee::Snp, &Peer::Vsock(3), now).unwrap();
        assert_eq!(sessions.take_challenge(&id, now), Ok((Tee::Snp, nonce)));
        assert_eq!(sessions.take_challenge(&id, now), Err(ChallengeError::Used));
        assert!(sessions.attested(&id, attested("token"), now));
        assert_eq!(sessions.take_challenge(&id, now), Err(ChallengeError::Used));
        assert_eq!(sessions.take_challenge("other", now), Err(ChallengeError::Unknown));
    }

    #[test]
    fn nonces_and_sessions_end() {
        let (sessions, now) = (sessions(), Instant::now());
        let (id, _) = sessions.begin(Tee::Snp, &Peer::Vsock(3), now).unwrap();
        let later = now + Duration::from_secs(60);
        assert_eq!(sessions.take_challenge(&id, later), Err(ChallengeError::Unknown));
        assert!(sessions.attested(&id, attested("token"), now));
        assert!(sessions.by_id(&id, later).is_some());
        assert!(sessions.by_token("token", later).is_some());
        assert!(sessions.by_token("tokem", later).is_none());
        let end = now + Duration::from_secs(300);
        assert!(sessions.by_id(&id, end).is_none());
        assert!(sessions.by_token("token", end).is_none());
    }

    #[test]
    fn who_begins_many_sessions_and_attests_none_loses_these() {
        let (sessions, now) = (sessions(), Instant::now());
        let begin = |cid| sessions.begin(Tee::Snp, &Peer::Vsock(cid), now).unwrap().0;
        let good: Vec<_> = (0..50).map(|cid| begin(1000 + cid)).collect();
        let attested_one = begin(1);
        sessions.take_challenge(&attested_one, now).unwrap();
        assert!(sessions.attested(&attested_one, attested("one"), now));
        // 75 peers, each as fast as it can.
        for round in 0..62 {
            for cid in 0..75 {
                begin(cid);
                assert!(sessions.table().sessions.len() <= MAX_SESSIONS, "{round}");
            }
        }
        for id in &good {
            assert!(sessions.take_challenge(id, now).is_ok());
        }
        assert!(sessions.by_token("one", now).is_some());
    }

    #[test]
    fn sessions_are_bounded_when_all_attested() {
        let (sessions, now) = (sessions(), Instant::now());
        let attest = |cid: u32| {
            let (id, _) = sessions.begin(Tee::Snp, &Peer::Vsock(cid), now).unwrap();
            assert!(sessions.attested(&id, attested(&format!("{cid}")), now));
        };
        attest(1);
        for _ in 0..MAX_SESSIONS {
            attest(2);
        }
        assert_eq!(sessions.table().sessions.len(), MAX_SESSIONS);
        assert!(sessions.by_token("1", now).is_some());
        assert!(sessions.by_token("2", now).is_some());
    }
}

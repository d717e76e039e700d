//! Sessions: a nonce that is good once and for a while, then what was attested with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use casemate_protocol::Evidence;
use kbs_types::{Tee, TeePubKey};

use crate::seal::random;

/// The most sessions at a time; beyond that, newcomers wait.
const MAX_SESSIONS: usize = 4096;
/// The most memory that the evidence of all sessions may take, in bytes.
const MAX_EVIDENCE: usize = 256 * 1024 * 1024;

/// What a session's guest has shown.
pub(crate) struct Attested {
    pub(crate) nonce: String,
    pub(crate) evidence: Evidence,
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
    map: Mutex<HashMap<String, Session>>,
    /// How long a nonce is good.
    nonce_lifetime: Duration,
    /// How long an attested session is good.
    pub(crate) lifetime: Duration,
}

impl Sessions {
    pub(crate) fn new(nonce_lifetime: Duration, lifetime: Duration) -> Self {
        Sessions { map: Mutex::default(), nonce_lifetime, lifetime }
    }

    /// Begins a session: its name and its nonce. `None` when there are too many, or no randomness.
    pub(crate) fn begin(&self, tee: Tee, now: Instant) -> Option<(String, String)> {
        let id = BASE64_URL_SAFE_NO_PAD.encode(*random::<32>()?);
        let nonce = BASE64_STANDARD.encode(*random::<32>()?);
        let mut map = self.map();
        map.retain(|_, session| session.ends > now);
        if map.len() >= MAX_SESSIONS {
            return None;
        }
        let state = State::Challenged { tee, nonce: nonce.clone() };
        map.insert(id.clone(), Session { state, ends: now + self.nonce_lifetime });
        Some((id, nonce))
    }

    /// Takes the session's kind of processor and nonce, which are thereby used up.
    pub(crate) fn take_challenge(
        &self,
        id: &str,
        now: Instant,
    ) -> Result<(Tee, String), ChallengeError> {
        let mut map = self.map();
        let session =
            map.get_mut(id).filter(|session| session.ends > now).ok_or(ChallengeError::Unknown)?;
        match std::mem::replace(&mut session.state, State::Used) {
            State::Challenged { tee, nonce } => Ok((tee, nonce)),
            other => {
                session.state = other;
                Err(ChallengeError::Used)
            }
        }
    }

    /// Notes what a session's guest has shown. `false` when all sessions' evidence is too much.
    pub(crate) fn attested(&self, id: &str, attested: Attested, now: Instant) -> bool {
        let mut map = self.map();
        map.retain(|_, session| session.ends > now);
        let held: usize = map
            .values()
            .map(|session| match &session.state {
                State::Attested(other) => size(&other.evidence),
                State::Challenged { .. } | State::Used => 0,
            })
            .sum();
        if held.saturating_add(size(&attested.evidence)) > MAX_EVIDENCE {
            return false;
        }
        let state = State::Attested(Arc::new(attested));
        map.insert(id.to_owned(), Session { state, ends: now + self.lifetime });
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
        let map = self.map();
        let mut alive = map.iter().filter(|(_, session)| session.ends > now);
        alive.find_map(|(id, session)| match &session.state {
            State::Attested(attested) if is_it(id, attested) => Some(Arc::clone(attested)),
            _ => None,
        })
    }

    fn map(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(evidence: &Evidence) -> usize {
    match evidence {
        Evidence::Snp { report, certificates } => report.len() + certificates.len(),
        Evidence::Tdx { quote, event_log } => quote.len() + event_log.as_ref().map_or(0, Vec::len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(Duration::from_secs(60), Duration::from_secs(300))
    }

    fn attested(token: &str) -> Attested {
        Attested {
            nonce: String::new(),
            evidence: Evidence::Snp { report: vec![], certificates: vec![] },
            report_data: [0; 64],
            key: TeePubKey::AKP { alg: String::new(), public_key: String::new() },
            token: token.to_owned(),
        }
    }

    #[test]
    fn a_nonce_is_good_once() {
        let (sessions, now) = (sessions(), Instant::now());
        let (id, nonce) = sessions.begin(Tee::Snp, now).unwrap();
        assert_eq!(sessions.take_challenge(&id, now), Ok((Tee::Snp, nonce)));
        assert_eq!(sessions.take_challenge(&id, now), Err(ChallengeError::Used));
        assert!(sessions.attested(&id, attested("token"), now));
        assert_eq!(sessions.take_challenge(&id, now), Err(ChallengeError::Used));
        assert_eq!(sessions.take_challenge("other", now), Err(ChallengeError::Unknown));
    }

    #[test]
    fn nonces_and_sessions_end() {
        let (sessions, now) = (sessions(), Instant::now());
        let (id, _) = sessions.begin(Tee::Snp, now).unwrap();
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
    fn sessions_are_bounded_and_room_is_made_by_time() {
        let (sessions, now) = (sessions(), Instant::now());
        for _ in 0..MAX_SESSIONS {
            assert!(sessions.begin(Tee::Snp, now).is_some());
        }
        assert!(sessions.begin(Tee::Snp, now).is_none());
        assert!(sessions.begin(Tee::Snp, now + Duration::from_secs(61)).is_some());
    }
}

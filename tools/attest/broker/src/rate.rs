//! How many requests a peer may make.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::peer::Peer;

/// The most peers that are remembered. When there are more, those with full buckets are forgotten, and if
/// that makes no room, the one with the fullest.
const MAX_PEERS: usize = 4096;

/// A token bucket per peer.
pub(crate) struct RateLimit {
    per_second: f64,
    burst: f64,
    peers: Mutex<HashMap<Peer, Bucket>>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RateLimit {
    /// On average `per_second` requests, at once at most `burst`.
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        RateLimit {
            per_second: f64::from(per_second),
            burst: f64::from(burst),
            peers: Mutex::default(),
        }
    }

    /// Whether `peer` may make a request now; if so, it is counted.
    pub(crate) fn allows(&self, peer: &Peer, now: Instant) -> bool {
        let peer = peer.counted();
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let level = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
            (bucket.tokens + passed * self.per_second).min(self.burst)
        };
        if !peers.contains_key(&peer) && peers.len() >= MAX_PEERS {
            peers.retain(|_, bucket| level(bucket) < self.burst);
            if peers.len() >= MAX_PEERS {
                let fullest = peers.iter().max_by(|a, b| level(a.1).total_cmp(&level(b.1)));
                let fullest = fullest.map(|(peer, _)| peer.clone());
                fullest.map(|peer| peers.remove(&peer));
            }
        }
        let bucket = peers.entry(peer).or_insert(Bucket { tokens: self.burst, filled: now });
        let tokens = level(bucket);
        let allowed = tokens >= 1.0;
        *bucket = Bucket { tokens: if allowed { tokens - 1.0 } else { tokens }, filled: now };
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_each_peer_for_itself() {
        let limit = RateLimit::new(2, 3);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let allowed = (0..5).filter(|_| limit.allows(&Peer::Vsock(1), at(0))).count();
        assert_eq!(allowed, 3);
        assert!(limit.allows(&Peer::Vsock(2), at(0)));
        assert!(!limit.allows(&Peer::Vsock(1), at(400)));
        assert!(limit.allows(&Peer::Vsock(1), at(500)));
        assert!(!limit.allows(&Peer::Vsock(1), at(501)));
    }

    #[test]
    fn many_peers_do_not_fill_the_memory() {
        let limit = RateLimit::new(1, 2);
        let start = Instant::now();
        let most = u32::try_from(MAX_PEERS).unwrap();
        for cid in 0..most {
            assert!(limit.allows(&Peer::Vsock(cid), start));
        }
        // The one that asks most keeps its bucket; others make room for newcomers.
        assert!(limit.allows(&Peer::Vsock(7), start));
        for cid in most..2 * most {
            assert!(limit.allows(&Peer::Vsock(cid), start));
        }
        assert!(!limit.allows(&Peer::Vsock(7), start));
        assert!(limit.peers.lock().unwrap().len() <= MAX_PEERS);
    }
}

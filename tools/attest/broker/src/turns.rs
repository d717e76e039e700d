//! Turns: how many requests are judged at a time, and whose is next.
//!
//! Peers take turns, and the requests of one peer wait behind each other: who sends many waits for them
//! alone.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Instant;

use crate::peer::Peer;

/// The turns of all peers.
pub(crate) struct Turns(Mutex<Queue>);

struct Queue {
    /// Turns that nobody has.
    free: usize,
    waiting: HashMap<Peer, VecDeque<Arc<Waiter>>>,
    /// Peers that wait, the next one first.
    order: VecDeque<Peer>,
}

struct Waiter {
    thread: Thread,
    has_turn: AtomicBool,
}

/// A turn, given to the next one when it is dropped.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    pub(crate) fn new(at_a_time: usize) -> Self {
        let (waiting, order) = (HashMap::new(), VecDeque::new());
        Turns(Mutex::new(Queue { free: at_a_time, waiting, order }))
    }

    /// Waits for a turn; `None` if there is none until the deadline.
    pub(crate) fn take(&self, peer: &Peer, deadline: Instant) -> Option<Turn<'_>> {
        let peer = peer.counted();
        let waiter = {
            let mut queue = self.lock();
            if queue.free > 0 {
                queue.free -= 1;
                return Some(Turn(self));
            }
            queue.enter(&peer)
        };
        while !waiter.has_turn.load(Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let mut queue = self.lock();
                if waiter.has_turn.load(Ordering::Acquire) {
                    break;
                }
                queue.leave(&peer, &waiter);
                return None;
            }
            thread::park_timeout(left);
        }
        Some(Turn(self))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        match queue.next() {
            Some(waiter) => {
                waiter.has_turn.store(true, Ordering::Release);
                waiter.thread.unpark();
            }
            None => queue.free += 1,
        }
    }
}

impl Queue {
    fn enter(&mut self, peer: &Peer) -> Arc<Waiter> {
        let waiter =
            Arc::new(Waiter { thread: thread::current(), has_turn: AtomicBool::new(false) });
        let own = self.waiting.entry(peer.clone()).or_default();
        if own.is_empty() {
            self.order.push_back(peer.clone());
        }
        own.push_back(Arc::clone(&waiter));
        waiter
    }

    fn leave(&mut self, peer: &Peer, waiter: &Arc<Waiter>) {
        if let Some(own) = self.waiting.get_mut(peer) {
            own.retain(|other| !Arc::ptr_eq(other, waiter));
            if own.is_empty() {
                self.waiting.remove(peer);
                self.order.retain(|other| other != peer);
            }
        }
    }

    /// The next one to have a turn. Its peer goes to the end of the order, if more of its requests wait.
    fn next(&mut self) -> Option<Arc<Waiter>> {
        let peer = self.order.pop_front()?;
        let own = self.waiting.get_mut(&peer)?;
        let waiter = own.pop_front()?;
        if own.is_empty() {
            self.waiting.remove(&peer);
        } else {
            self.order.push_back(peer);
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    /// Waits until so many requests wait.
    fn until_waiting(turns: &Turns, count: usize) {
        while turns.lock().waiting.values().map(VecDeque::len).sum::<usize>() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn peers_take_turns_however_many_requests_one_has() {
        let turns = Turns::new(1);
        let (sender, receiver) = channel();
        let begun = turns.take(&Peer::Vsock(0), far()).unwrap();
        thread::scope(|scope| {
            // Of peer 1 three requests, then of 2 and 3 one each.
            for (count, cid) in [1, 1, 1, 2, 3].into_iter().enumerate() {
                let (sender, turns) = (sender.clone(), &turns);
                scope.spawn(move || {
                    let turn = turns.take(&Peer::Vsock(cid), far()).unwrap();
                    sender.send(cid).unwrap();
                    drop(turn);
                });
                until_waiting(turns, count + 1);
            }
            drop(begun);
        });
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [1, 2, 3, 1, 1]);
        assert_eq!(turns.lock().free, 1);
    }

    #[test]
    fn who_waits_too_long_leaves_and_takes_nothing_along() {
        let turns = Turns::new(1);
        let begun = turns.take(&Peer::Vsock(0), far()).unwrap();
        assert!(turns.take(&Peer::Vsock(1), Instant::now()).is_none());
        let queue = turns.lock();
        assert!(queue.order.is_empty() && queue.waiting.is_empty());
        drop(queue);
        drop(begun);
        assert!(turns.take(&Peer::Vsock(1), Instant::now()).is_some());
    }

    #[test]
    fn no_turn_is_lost_among_many() {
        let turns = Turns::new(3);
        let most = std::sync::atomic::AtomicUsize::new(0);
        let now = std::sync::atomic::AtomicUsize::new(0);
        thread::scope(|scope| {
            for number in 0..16_u32 {
                let (turns, most, now) = (&turns, &most, &now);
                scope.spawn(move || {
                    for round in 0..50 {
                        // Some do not wait at all, and leave.
                        let deadline = if round % 5 == 0 { Instant::now() } else { far() };
                        let Some(turn) = turns.take(&Peer::Vsock(number % 4), deadline) else {
                            continue;
                        };
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
        assert_eq!(turns.lock().free, 3);
        assert!(most.into_inner() <= 3);
    }
}

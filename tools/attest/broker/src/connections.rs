//! The open connections, and which of them makes room for a new one.
//!
//! When there are too many, in number or in bytes of requests, the peer that has the most loses the
//! oldest request that it has not sent whole. So peers that open connections and send nothing take room
//! from themselves, not from others.

use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::Socket;

use crate::peer::Peer;

/// Bytes that the bodies of all requests may take together.
const MAX_BODIES: usize = 128 * 1024 * 1024;

/// All open connections.
pub(crate) struct Connections {
    open: Mutex<Open>,
    /// Most connections at a time.
    most: usize,
    /// Most connections of a peer at a time.
    most_of_peer: usize,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// In the order in which they came.
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    /// As limits count it.
    peer: Peer,
    connection: Arc<Socket>,
    /// Whether its request has not arrived whole.
    arriving: bool,
    /// Length of its request's body.
    body: usize,
}

/// A place among the connections, given back when it is dropped.
pub(crate) struct Place {
    connections: Arc<Connections>,
    number: u64,
}

impl Connections {
    pub(crate) fn new(most: usize, most_of_peer: usize) -> Self {
        Connections { open: Mutex::default(), most, most_of_peer }
    }

    /// Takes a connection in; `None` when there is no room and no request is still arriving whose place
    /// it could have. A proxy's connections belong to many peers: they are not limited as one peer's.
    pub(crate) fn admit(
        self: &Arc<Self>,
        connection: &Arc<Socket>,
        peer: &Peer,
        is_proxy: bool,
    ) -> Option<Place> {
        let peer = peer.counted();
        let mut open = self.lock();
        let of_peer = open.entries.values().filter(|entry| entry.peer == peer).count();
        if !is_proxy && of_peer >= self.most_of_peer && !open.close_oldest_of(&peer) {
            return None;
        }
        if open.entries.len() >= self.most && !open.make_room(|_| 1) {
            return None;
        }
        let number = open.next;
        open.next += 1;
        let connection = Arc::clone(connection);
        open.entries.insert(number, Entry { peer, connection, arriving: true, body: 0 });
        Some(Place { connections: Arc::clone(self), number })
    }

    /// Closes one connection, for the process has no room for more.
    pub(crate) fn close_one(&self) -> bool {
        self.lock().make_room(|_| 1)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Announces a body of `length` bytes.
    pub(crate) fn expect_body(&self, length: usize) {
        let mut open = self.connections.lock();
        if let Some(entry) = open.entries.get_mut(&self.number) {
            entry.body = length;
        }
        let total = |open: &Open| open.entries.values().map(|entry| entry.body).sum::<usize>();
        while total(&open) > MAX_BODIES && open.make_room(|entry| entry.body) {}
    }

    /// The request is there, and comes from `peer`: nothing takes its place any more.
    pub(crate) fn arrived(&self, peer: &Peer) {
        if let Some(entry) = self.connections.lock().entries.get_mut(&self.number) {
            entry.peer = peer.counted();
            entry.arriving = false;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().entries.remove(&self.number);
    }
}

impl Open {
    fn close_oldest_of(&mut self, peer: &Peer) -> bool {
        self.close_first(|entry| entry.peer == *peer)
    }

    /// Closes the oldest arriving connection with a weight, of the peer whose connections weigh most.
    fn make_room(&mut self, weight: impl Fn(&Entry) -> usize) -> bool {
        let mut weights: HashMap<&Peer, (usize, bool)> = HashMap::new();
        for entry in self.entries.values() {
            let (sum, closable) = weights.entry(&entry.peer).or_default();
            *sum += weight(entry);
            *closable |= entry.arriving && weight(entry) > 0;
        }
        let closable = weights.into_iter().filter(|(_, (_, closable))| *closable);
        let Some((heaviest, _)) = closable.max_by_key(|(_, (sum, _))| *sum) else { return false };
        let heaviest = heaviest.clone();
        self.close_first(|entry| entry.peer == heaviest && weight(entry) > 0)
    }

    /// Closes the first arriving connection of some kind. Its thread then reads the end, and leaves.
    fn close_first(&mut self, kind: impl Fn(&Entry) -> bool) -> bool {
        let mut arriving = self.entries.iter().filter(|(_, entry)| entry.arriving);
        let Some(number) = arriving.find(|(_, entry)| kind(entry)).map(|(number, _)| *number)
        else {
            return false;
        };
        if let Some(entry) = self.entries.remove(&number) {
            // It may have ended already.
            let _ = entry.connection.shutdown(Shutdown::Both);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::listen::Timed;

    struct Room(Arc<Connections>);

    impl Room {
        fn new(most: usize, most_of_peer: usize) -> Self {
            Room(Arc::new(Connections::new(most, most_of_peer)))
        }

        fn admit(&self, peer: u32) -> Option<(Place, Arc<Socket>, UnixStream)> {
            let (mine, theirs) = UnixStream::pair().unwrap();
            let connection = Arc::new(Socket::from(mine));
            let place = self.0.admit(&connection, &Peer::Vsock(peer), false)?;
            Some((place, connection, theirs))
        }

        fn len(&self) -> usize {
            self.0.lock().entries.len()
        }
    }

    fn is_closed((_, connection, _): &(Place, Arc<Socket>, UnixStream)) -> bool {
        let soon = Instant::now() + Duration::from_millis(20);
        matches!(Timed::new(Arc::clone(connection), soon).read(&mut [0]), Ok(0))
    }

    #[test]
    fn a_peer_makes_room_for_itself() {
        let room = Room::new(100, 3);
        let mut own: Vec<_> = (0..3).map(|_| room.admit(1).unwrap()).collect();
        let other = room.admit(2).unwrap();
        own.push(room.admit(1).unwrap());
        assert_eq!(own.iter().map(is_closed).collect::<Vec<_>>(), [true, false, false, false]);
        assert!(!is_closed(&other));
        // Requests that arrived are answered, whoever comes.
        for (place, ..) in &own {
            place.arrived(&Peer::Vsock(1));
        }
        assert!(room.admit(1).is_none());
        assert!(room.admit(2).is_some());
    }

    #[test]
    fn the_peer_with_the_most_makes_room_for_all() {
        let room = Room::new(5, 4);
        let mut many: Vec<_> = (0..4).map(|_| room.admit(1).unwrap()).collect();
        let first = room.admit(2).unwrap();
        many.push(room.admit(3).unwrap());
        assert!(!is_closed(&first));
        assert_eq!(many.iter().filter(|one| is_closed(one)).count(), 1);
        assert_eq!(room.len(), 5);
        drop((many, first));
        assert_eq!(room.len(), 0);
    }

    #[test]
    fn long_bodies_take_room_from_whoever_sends_them() {
        let room = Room::new(1000, 1000);
        let long: Vec<_> = (0..3).map(|_| room.admit(1).unwrap()).collect();
        let short = room.admit(2).unwrap();
        short.0.expect_body(1000);
        for (place, ..) in &long {
            place.expect_body(MAX_BODIES / 2);
        }
        assert!(!is_closed(&short));
        assert_eq!(long.iter().map(is_closed).collect::<Vec<_>>(), [true, true, false]);
    }
}

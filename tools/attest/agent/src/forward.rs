//! Clients of the Key Broker Service protocol speak HTTP over TCP. In a guest without a network they
//! reach the broker all the same: their connections are passed on, over vsock for example.
//!
//! Nothing is looked at on the way. What matters is encrypted to a key in the client's own evidence.

use std::io;
use std::net::{Shutdown, TcpListener};
use std::thread;

use socket2::Socket;

/// Passes on every connection that `listener` gets, each to a new one of `connect`. Returns only when
/// `listener` fails.
///
/// # Errors
/// The listener's.
pub fn forward(
    listener: &TcpListener,
    connect: impl Fn() -> io::Result<Socket> + Sync,
) -> io::Result<()> {
    thread::scope(|scope| {
        loop {
            let client = Socket::from(listener.accept()?.0);
            let connect = &connect;
            scope.spawn(move || {
                let passed = connect().and_then(|broker| pass(&client, &broker));
                if let Err(error) = passed {
                    eprintln!("casemate-agent: a connection ended: {error}");
                }
            });
        }
    })
}

/// Both ways, until the broker has said all: it answers one request a connection.
fn pass(client: &Socket, broker: &Socket) -> io::Result<()> {
    thread::scope(|scope| {
        scope.spawn(|| copy(client, broker));
        let answered = copy(broker, client);
        // Ends the thread too, if it still waits for the client.
        let _ = client.shutdown(Shutdown::Both);
        answered
    })
}

/// All that `from` says, and then its end.
fn copy(mut from: &Socket, mut to: &Socket) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::Address;

    #[test]
    fn what_a_client_says_reaches_the_broker_and_the_answer_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker");
        let broker = UnixListener::bind(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = Address::Unix(path);
        thread::spawn(move || forward(&listener, || connect.connect()));
        thread::spawn(move || {
            for stream in broker.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4];
                if stream.read_exact(&mut request).is_ok() {
                    request.reverse();
                    stream.write_all(&request).unwrap();
                }
            }
        });
        // One that goes without a word, and two that get their answer and the end of it.
        drop(TcpStream::connect(address).unwrap());
        for _ in 0..2 {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(b"ping").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "gnip");
        }
    }
}

//! Asking a TDX quote generation service for a quote.
//!
//! One connection for each request: a length in big endian, then a message in little endian, and the
//! same back. Source: Intel's Data Center Attestation Primitives, `qgs_msg_lib.h`.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use casemate_config::QuoteService;
use socket2::{Domain, SockAddr, Socket, Type};

/// How long a quote may take in all.
const LIMIT: Duration = Duration::from_secs(30);
/// No answer is longer; quotes have some 5 KiB.
const LONGEST: usize = 128 << 10;
/// Version (two u16), type, size of the message, error.
const HEADER: usize = 16;
/// Then two sizes: of an identifier that nobody asked for, and of the quote.
const SIZES: usize = 8;
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

/// On which hop a quote was lost.
#[derive(Debug, thiserror::Error)]
pub enum QuoteError {
    /// Nobody listens.
    #[error("could not connect to the quote service {service}")]
    Connect {
        /// Where.
        service: QuoteService,
        /// Why.
        source: io::Error,
    },
    /// It did not take the request.
    #[error("could not send a report to the quote service {service}")]
    Send {
        /// Which one.
        service: QuoteService,
        /// Why.
        source: io::Error,
    },
    /// It did not answer, or not in time.
    #[error("the quote service {service} did not answer")]
    Receive {
        /// Which one.
        service: QuoteService,
        /// Why.
        source: io::Error,
    },
    /// Its answer is no answer.
    #[error("the quote service {service} gave an answer that is none: {problem}")]
    Answer {
        /// Which one.
        service: QuoteService,
        /// What is wrong.
        problem: String,
    },
    /// It answered that it gives no quote.
    #[error("the quote service {service} gives no quote for this report, error {code:#x}")]
    Refused {
        /// Which one.
        service: QuoteService,
        /// Its code (`quote3_error_t`, or QGS's own).
        code: u32,
    },
}

/// Turns a report into a quote.
///
/// # Errors
/// The service is not there, is not what it should be, takes longer than 30 seconds, or refuses.
pub fn quote(service: &QuoteService, report: &[u8]) -> Result<Vec<u8>, QuoteError> {
    quote_within(LIMIT, service, report)
}

fn quote_within(
    limit: Duration,
    service: &QuoteService,
    report: &[u8],
) -> Result<Vec<u8>, QuoteError> {
    let deadline = Instant::now() + limit;
    let named = || service.clone();
    let mut socket = connect(service, deadline)
        .map_err(|source| QuoteError::Connect { service: named(), source })?;
    send(&mut socket, &request(report), deadline)
        .map_err(|source| QuoteError::Send { service: named(), source })?;
    let answer = receive(&mut socket, deadline)
        .map_err(|source| QuoteError::Receive { service: named(), source })?;
    match response(&answer) {
        Ok(Response::Quote(quote)) => Ok(quote.to_vec()),
        Ok(Response::Error(code)) => Err(QuoteError::Refused { service: named(), code }),
        Err(problem) => Err(QuoteError::Answer { service: named(), problem }),
    }
}

/// Does a step that can take a given time, which is what is left until `deadline`.
fn in_time<T>(deadline: Instant, mut step: impl FnMut(Duration) -> io::Result<T>) -> io::Result<T> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Sockets have microseconds, and take 0 of them for ever.
        if left < Duration::from_millis(1) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match step(left) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            outcome => return outcome,
        }
    }
}

fn connect(service: &QuoteService, deadline: Instant) -> io::Result<Socket> {
    let (domain, address) = match service {
        QuoteService::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        QuoteService::Vsock { cid, port } => (Domain::VSOCK, SockAddr::vsock(*cid, *port)),
    };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    in_time(deadline, |left| {
        // A Unix socket waits as long for a place in the queue; vsock never more than 2 seconds.
        socket.set_write_timeout(Some(left))?;
        socket.connect(&address)
    })?;
    Ok(socket)
}

fn send(socket: &mut Socket, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = in_time(deadline, |left| {
            socket.set_write_timeout(Some(left))?;
            socket.write(bytes)
        })?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

fn request(report: &[u8]) -> Vec<u8> {
    // A report has 1024 bytes, and a guest's buffer at most 128 KiB.
    let word = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let size = word(HEADER + SIZES + report.len());
    let mut message = size.to_be_bytes().to_vec();
    message.extend([1, 0, 1, 0]);
    // No error; a report of this size; no identifiers.
    for value in [GET_QUOTE_REQUEST, size, 0, word(report.len()), 0] {
        message.extend(value.to_le_bytes());
    }
    message.extend(report);
    message
}

fn receive(socket: &mut Socket, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    fill(socket, &mut length, deadline)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(io::Error::other(format!("{length} bytes are more than any quote has")));
    }
    let mut message = vec![0; length];
    fill(socket, &mut message, deadline)?;
    Ok(message)
}

/// Reads until `bytes` are full: a service that sends little by little has no more time than others.
fn fill(socket: &mut Socket, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = in_time(deadline, |left| {
            socket.set_read_timeout(Some(left))?;
            socket.read(bytes)
        })?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = bytes.get_mut(count..).unwrap_or_default();
    }
    Ok(())
}

/// An answer of the service.
#[derive(Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// The quote, which nobody has looked at.
    Quote(&'a [u8]),
    /// Why there is none.
    Error(u32),
}

/// Reads an answer, without the length before it.
///
/// # Errors
/// What is wrong with it: every length in it must be what the bytes are.
pub fn response(message: &[u8]) -> Result<Response<'_>, String> {
    let short = || format!("{} bytes are too few", message.len());
    let word = |at: usize| {
        let bytes = message.get(at..).and_then(<[u8]>::first_chunk::<4>).ok_or_else(short)?;
        Ok::<_, String>(u32::from_le_bytes(*bytes))
    };
    let size = |at| Ok::<_, String>(usize::try_from(word(at)?).unwrap_or(usize::MAX));
    let (major, kind, code) = (word(0)? & 0xffff, word(4)?, word(12)?);
    if major != 1 || kind != GET_QUOTE_RESPONSE {
        return Err(format!("version {major}, type {kind}"));
    }
    if size(8)? != message.len() {
        return Err(format!("{} bytes came, {} were announced", message.len(), size(8)?));
    }
    if code != 0 {
        return Ok(Response::Error(code));
    }
    let (identifier, quote) = (size(HEADER)?, size(HEADER + 4)?);
    let rest = message.get(HEADER + SIZES..).ok_or_else(short)?;
    let quote = rest.get(identifier..).filter(|bytes| !bytes.is_empty() && bytes.len() == quote);
    quote.map(Response::Quote).ok_or_else(|| "its sizes do not fit".into())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::thread;

    use super::*;

    fn answer(code: u32, identifier: u32, quote: &[u8]) -> Vec<u8> {
        let size = u32::try_from(HEADER + SIZES + quote.len()).unwrap();
        let mut message = vec![1, 0, 1, 0];
        let length = u32::try_from(quote.len()).unwrap();
        for value in [GET_QUOTE_RESPONSE, size, code, identifier, length] {
            message.extend(value.to_le_bytes());
        }
        message.extend(quote);
        message
    }

    /// What becomes of a request whose service answers with these bytes.
    fn asked(bytes: Vec<u8>) -> Result<Vec<u8>, QuoteError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qgs");
        let listener = UnixListener::bind(&path).unwrap();
        let service = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4 + HEADER + SIZES + 1024];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&bytes).unwrap();
            request
        });
        let outcome = quote(&QuoteService::Unix(path), &[7; 1024]);
        let request = service.join().unwrap();
        assert_eq!(request[..4], 1048_u32.to_be_bytes());
        assert_eq!(request[28..], [7; 1024]);
        outcome
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    }

    #[test]
    fn a_quote_is_asked_for_and_given() {
        assert_eq!(asked(framed(&answer(0, 0, b"quote"))).unwrap(), b"quote");
    }

    #[test]
    fn each_hop_that_fails_has_its_name() {
        let said = |bytes| asked(bytes).unwrap_err().to_string();
        assert!(said(framed(&answer(0x12, 0, b""))).contains("error 0x12"));
        assert!(said(framed(&answer(0, 1, b"quote"))).contains("its sizes do not fit"));
        assert!(said(framed(&[1, 0])).contains("2 bytes are too few"));
        assert!(said(vec![0xff; 4]).contains("did not answer"));
        assert!(said(vec![0, 0]).contains("did not answer"));
        let nobody = QuoteService::Unix("/none".into());
        let error = quote(&nobody, &[]).unwrap_err().to_string();
        assert_eq!(error, "could not connect to the quote service unix:/none");
    }

    /// More than a socket takes before somebody reads.
    static LONG: [u8; 4 << 20] = [0; 4 << 20];

    /// A quote of `report` is lost on this hop and because of this, within a short limit.
    fn lost(path: &Path, report: &[u8], hop: &str, why: io::ErrorKind) {
        const LIMIT: Duration = Duration::from_millis(300);
        let start = Instant::now();
        let error = quote_within(LIMIT, &QuoteService::Unix(path.into()), report).unwrap_err();
        let took = start.elapsed();
        let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(cause.map(io::Error::kind), Some(why), "{error}");
        assert!(error.to_string().contains(hop), "{error}");
        // What other threads of the tests take from the processor is a part of it.
        assert!(took < 10 * LIMIT, "{took:?}");
        assert!(why != io::ErrorKind::TimedOut || took > LIMIT / 2, "{took:?}");
    }

    /// Nobody accepts these connections: they are open, and what is sent waits.
    #[test]
    fn a_service_that_hangs_is_a_timeout_of_the_hop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qgs");
        let listener = UnixListener::bind(&path).unwrap();
        let timeout = io::ErrorKind::TimedOut;
        lost(&path, &[7; 1024], "did not answer", timeout);
        lost(&path, &LONG, "could not send a report", timeout);
        drop(listener);
        let path = folder.path().join("full");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        lost(&path, &[7; 1024], "could not connect", timeout);
    }

    /// Each byte comes in time, all of them do not.
    #[test]
    fn a_service_that_dawdles_has_no_more_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qgs");
        let listener = UnixListener::bind(&path).unwrap();
        let service = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&4096_u32.to_be_bytes()).unwrap();
            // Until the other side is gone.
            while stream.write_all(&[0]).is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        });
        lost(&path, &[7; 1024], "did not answer", io::ErrorKind::TimedOut);
        service.join().unwrap();
    }

    #[test]
    fn a_service_that_hangs_up_before_it_has_read_does_not_take_the_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qgs");
        let listener = UnixListener::bind(&path).unwrap();
        let service = thread::spawn(move || drop(listener.accept().unwrap()));
        lost(&path, &LONG, "could not send a report", io::ErrorKind::BrokenPipe);
        service.join().unwrap();
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_a_panic(bytes: Vec<u8>) {
            let _ = response(&bytes);
        }

        #[test]
        fn what_is_taken_for_a_quote_is_all_there(quote: Vec<u8>, cut in 0_usize..64) {
            let whole = answer(0, 0, &quote);
            let part = &whole[..whole.len() - cut.min(whole.len())];
            let taken = response(part);
            proptest::prop_assert_eq!(taken.is_ok(), cut == 0 && !quote.is_empty());
        }
    }
}

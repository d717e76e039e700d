//! One HTTP/1.1 request and its answer, as little of it as the protocol needs: one exchange a
//! connection, bodies of a known length.

use std::io::{self, Read, Write};

use casemate_protocol::{COOKIE, SIGNATURE_HEADER};

use crate::Address;

/// The longest answer that is read, in bytes. The longest secret's is half of this.
const MAX_ANSWER: u64 = 128 * 1024;
const MAX_HEADERS: usize = 32;

/// A request.
pub(crate) struct Request<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'a str,
    /// The session's cookie, if there is a session.
    pub(crate) session: Option<&'a str>,
    /// JSON.
    pub(crate) body: &'a [u8],
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The session's cookie, if one was set.
    pub(crate) session: Option<String>,
    /// The signature of a release, if it has one.
    pub(crate) signature: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// No answer that makes sense.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection cannot be made.
    #[error("could not connect to the broker at {address}")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// It broke.
    #[error("the connection to the broker broke")]
    Broken(#[from] io::Error),
    /// The answer has no end within the limit.
    #[error("the broker's answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    /// The answer is not HTTP.
    #[error("what answers is no broker: not HTTP/1.1 with a whole body")]
    NotHttp,
}

/// Sends a request to `address`, and reads the answer.
pub(crate) fn exchange(address: &Address, request: &Request<'_>) -> Result<Answer, ExchangeError> {
    let mut stream = address
        .connect()
        .map_err(|source| ExchangeError::Connect { address: address.clone(), source })?;
    // A busy broker answers without reading, and closes: the answer may be there all the same.
    let sent = stream.write_all(&request.to_bytes());
    let mut answer = Vec::new();
    let received = stream.take(MAX_ANSWER + 1).read_to_end(&mut answer);
    if let Some(early) = Answer::parse(&answer).filter(|_| sent.is_err() || received.is_err()) {
        return Ok(early);
    }
    sent?;
    received?;
    if u64::try_from(answer.len()).unwrap_or(u64::MAX) > MAX_ANSWER {
        return Err(ExchangeError::TooLong);
    }
    Answer::parse(&answer).ok_or(ExchangeError::NotHttp)
}

impl Request<'_> {
    fn to_bytes(&self) -> Vec<u8> {
        let Request { method, path, session, body } = self;
        let cookie = session.map(|id| format!("Cookie: {COOKIE}={id}\r\n")).unwrap_or_default();
        let length = body.len();
        let mut bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n{cookie}\r\n"
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }
}

impl Answer {
    /// Reads a whole answer; what it sends beyond its body's length does not count.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(start) = head.parse(bytes).ok()? else { return None };
        let field = |name: &str| {
            let header = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            header.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let length: usize = field("Content-Length")?.trim().parse().ok()?;
        let session = field("Set-Cookie").and_then(|cookie| {
            let (pair, _) = cookie.split_once(';').unwrap_or((cookie, ""));
            let (name, value) = pair.trim().split_once('=')?;
            (name == COOKIE && value.bytes().all(|byte| byte.is_ascii_graphic()))
                .then(|| value.to_owned())
        });
        Some(Answer {
            status: head.code?,
            session,
            signature: field(SIGNATURE_HEADER).map(|text| text.trim().to_owned()),
            body: bytes.get(start..start.checked_add(length)?)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_answer() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\
            Set-Cookie: kbs-session-id=abc; HttpOnly\r\n\
            casemate-release-signature: xyz \r\n\r\n{}rest";
        let answer = Answer {
            status: 200,
            session: Some("abc".into()),
            signature: Some("xyz".into()),
            body: b"{}".to_vec(),
        };
        assert_eq!(Answer::parse(bytes), Some(answer));
    }

    #[test]
    fn refuses_what_is_not_a_whole_answer() {
        for bytes in [
            &b""[..],
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n{}",
        ] {
            assert_eq!(Answer::parse(bytes), None);
        }
    }

    #[test]
    fn an_answer_that_came_before_the_request_was_read_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let address = Address::Unix(path);
        // More than a socket's buffers hold, so that the end of the connection meets the writing.
        let body = vec![0; 16 << 20];
        let request = Request { method: "POST", path: "/", session: None, body: &body };
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}").unwrap();
            });
            exchange(&address, &request)
        });
        assert_eq!(answer.unwrap().status, 503);
    }

    #[test]
    fn a_cookie_cannot_smuggle_a_header_line() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\
            Set-Cookie: kbs-session-id=a\tb\r\n\r\n";
        assert_eq!(Answer::parse(bytes).unwrap().session, None);
    }
}

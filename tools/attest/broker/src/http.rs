//! As much of HTTP/1.1 as the protocol needs: one request a connection, bodies of a known length.

use std::io::{self, Read, Write};

use casemate_protocol::{COOKIE, SIGNATURE_HEADER};

/// The longest request line with headers, in bytes.
pub const MAX_HEAD: usize = 16 * 1024;
/// The longest body, in bytes. A quote with its event log in base64 is a tenth of it.
pub const MAX_BODY: usize = 2 * 1024 * 1024;
const MAX_HEADERS: usize = 64;

/// A request line with the headers that count here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// As it came.
    pub method: String,
    /// As it came, with a query if it has one.
    pub path: String,
    /// The session that the cookie names.
    pub session: Option<String>,
    /// The token of an `Authorization: Bearer` header.
    pub token: Option<String>,
    /// The body's length in bytes.
    pub body_length: usize,
    /// The values of all `X-Forwarded-For` headers, in order.
    pub x_forwarded_for: Vec<String>,
    /// The values of all `Forwarded` headers, in order.
    pub forwarded: Vec<String>,
}

/// A request that is not answered by the protocol but by its status alone.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not HTTP/1.
    #[error("the request is not HTTP/1.1")]
    Malformed,
    /// Headers without an end.
    #[error(
        "the request's head is longer than {MAX_HEAD} bytes or has more than {MAX_HEADERS} headers"
    )]
    HeadTooLong,
    /// A body that is not read.
    #[error("the request's body is longer than {MAX_BODY} bytes")]
    BodyTooLong,
    /// A length that is none, is there twice, or is replaced by a transfer coding.
    #[error("the body's length must be given, once, by Content-Length alone")]
    Length,
    /// The peer is gone or too slow.
    #[error("the request did not arrive whole in time")]
    Incomplete(#[from] io::Error),
}

impl HttpError {
    /// The status to answer with.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            HttpError::Malformed => 400,
            HttpError::Incomplete(_) => 408,
            HttpError::Length => 411,
            HttpError::BodyTooLong => 413,
            HttpError::HeadTooLong => 431,
        }
    }
}

impl Head {
    /// Reads a head, and how long it is; `None` while its end is not there.
    ///
    /// # Errors
    /// What is there cannot become a head.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HttpError::HeadTooLong),
            Err(_) => return Err(HttpError::Malformed),
        };
        let (Some(method), Some(path)) = (request.method, request.path) else {
            return Err(HttpError::Malformed);
        };
        let head = Head {
            method: method.to_owned(),
            path: path.to_owned(),
            session: session(request.headers),
            token: token(request.headers),
            body_length: body_length(request.headers)?,
            x_forwarded_for: texts(request.headers, "X-Forwarded-For"),
            forwarded: texts(request.headers, "Forwarded"),
        };
        Ok(Some((head, length)))
    }
}

/// The values of all headers of a name.
fn values<'a>(
    headers: &'a [httparse::Header<'a>],
    name: &'a str,
) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value)
}

/// The values of all headers of a name, as text. What is none names nobody, but keeps its place.
fn texts(headers: &[httparse::Header<'_>], name: &str) -> Vec<String> {
    values(headers, name).map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

fn body_length(headers: &[httparse::Header<'_>]) -> Result<usize, HttpError> {
    if values(headers, "Transfer-Encoding").next().is_some() {
        return Err(HttpError::Length);
    }
    let mut lengths = values(headers, "Content-Length");
    let Some(length) = lengths.next() else { return Ok(0) };
    if lengths.next().is_some() || length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::Length);
    }
    // Digits only: what does not fit into a number is too long.
    let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
    length.filter(|length| *length <= MAX_BODY).ok_or(HttpError::BodyTooLong)
}

fn session(headers: &[httparse::Header<'_>]) -> Option<String> {
    values(headers, "Cookie")
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == COOKIE).then(|| value.to_owned())
        })
}

fn token(headers: &[httparse::Header<'_>]) -> Option<String> {
    let value = std::str::from_utf8(values(headers, "Authorization").next()?).ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim().to_owned())
}

/// Reads a whole request. The stream's timeouts bound how long that takes; `expect` learns of the body's
/// length before the body is read.
///
/// # Errors
/// See [`HttpError`].
pub fn read_request(
    stream: &mut impl Read,
    expect: impl FnOnce(usize),
) -> Result<(Head, Vec<u8>), HttpError> {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        if let Some(found) = Head::parse(&bytes)? {
            break found;
        }
        let mut chunk = [0; 4096];
        let room = MAX_HEAD.saturating_sub(bytes.len()).clamp(1, chunk.len());
        let count = stream.read(&mut chunk[..room])?;
        if count == 0 {
            return Err(HttpError::Incomplete(io::ErrorKind::UnexpectedEof.into()));
        }
        bytes.extend_from_slice(&chunk[..count]);
    };
    expect(head.body_length);
    let mut body = bytes.split_off(length);
    body.truncate(head.body_length);
    let missing = head.body_length - body.len();
    let received =
        stream.take(u64::try_from(missing).unwrap_or(u64::MAX)).read_to_end(&mut body)?;
    if received < missing {
        return Err(HttpError::Incomplete(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok((head, body))
}

/// An answer; its body is JSON.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// A session to name from now on.
    pub session: Option<String>,
    /// A release's signature.
    pub signature: Option<String>,
    /// The method that the path has, when another one was used.
    pub allow: Option<&'static str>,
    /// JSON.
    pub body: Vec<u8>,
}

impl Answer {
    /// Writes the answer. The connection is to be closed after it.
    ///
    /// # Errors
    /// The peer is gone or too slow.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            411 => "Length Required",
            413 => "Content Too Large",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let cookie = match &self.session {
            Some(id) => format!("Set-Cookie: {COOKIE}={id}; Path=/; HttpOnly\r\n"),
            None => String::new(),
        };
        let signature = match &self.signature {
            Some(signature) => format!("{SIGNATURE_HEADER}: {signature}\r\n"),
            None => String::new(),
        };
        let allow = self.allow.map(|method| format!("Allow: {method}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n{cookie}{allow}{signature}\r\n",
            self.status,
            self.body.len()
        );
        stream.write_all(&[head.as_bytes(), &self.body].concat())?;
        stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<(Head, Vec<u8>), HttpError> {
        read_request(&mut &bytes[..], |_| ())
    }

    #[test]
    fn reads_what_clients_send() {
        let bytes = b"POST /kbs/v0/attest HTTP/1.1\r\nhost: broker\r\n\
            cookie: other=1; kbs-session-id=abc\r\nauthorization: bearer xyz\r\n\
            content-length: 2\r\n\r\n{}";
        let (head, body) = read(bytes).unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/kbs/v0/attest"));
        assert_eq!((head.session.as_deref(), head.token.as_deref()), (Some("abc"), Some("xyz")));
        assert_eq!(body, b"{}");
    }

    #[test]
    fn a_body_has_one_length() {
        for (headers, status) in [
            ("Transfer-Encoding: chunked\r\n", 411),
            ("Content-Length: 2\r\nContent-Length: 2\r\n", 411),
            ("Content-Length: +2\r\n", 411),
            ("Content-Length:\r\n", 411),
            ("Content-Length: 2097153\r\n", 413),
            ("Content-Length: 99999999999999999999999\r\n", 413),
            ("Content-Length: 3\r\n", 408),
        ] {
            let bytes = format!("POST / HTTP/1.1\r\n{headers}\r\n{{}}");
            assert_eq!(read(bytes.as_bytes()).unwrap_err().status(), status, "{headers}");
        }
    }

    #[test]
    fn a_head_without_end_is_not_read_for_ever() {
        struct Endless;
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(b'a');
                Ok(buffer.len())
            }
        }
        assert_eq!(read_request(&mut Endless, |_| ()).unwrap_err().status(), 431);
        let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(MAX_HEAD));
        assert_eq!(read(long.as_bytes()).unwrap_err().status(), 431);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(read(many.as_bytes()).unwrap_err().status(), 431);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_request_is_read_alike_however_it_is_cut(cut in 1_usize..100, body in "[a-z{}\r\n]{0,200}") {
            struct Slowly<'a>(&'a [u8], usize);
            impl Read for Slowly<'_> {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let count = self.1.min(buffer.len()).min(self.0.len());
                    let (now, later) = self.0.split_at(count);
                    buffer[..count].copy_from_slice(now);
                    self.0 = later;
                    Ok(count)
                }
            }
            let bytes = format!("POST /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}rest", body.len());
            let (head, found) = read_request(&mut Slowly(bytes.as_bytes(), cut), |_| ()).unwrap();
            prop_assert_eq!(head.path, "/a");
            prop_assert_eq!(found, body.as_bytes());
        }
    }
}

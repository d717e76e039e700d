//! Tables of `guest.toml` as values of a flag: `PATH,read_only=true,queues=2`.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::schema::{Cpu, Disk, Net, Vsock};

/// Why the value of a flag is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FlagError(String);

impl FlagError {
    pub(crate) const fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn word(word: &str, words: &[&str]) -> Self {
        Self(format!("\"{word}\" is not one of {}", words.join(", ")))
    }
}

/// Keys whose values are numbers in a file. All others are text, but for `true` and `false`.
const NUMBERS: [&str; 6] = ["cid", "queues", "requests_per_second", "sockets", "cores", "threads"];

/// Reads `FIRST,KEY=VALUE,...`; the first value is that of the key `first` and has no name. Where it is
/// empty, the key keeps its default. A comma inside of a value is written twice.
fn table<T: DeserializeOwned>(first: &str, text: &str) -> Result<T, FlagError> {
    let mut table = Table::new();
    for (at, item) in items(text).iter().enumerate() {
        let (key, value) = match item.split_once('=') {
            _ if at == 0 && item.is_empty() => continue,
            _ if at == 0 => (first, item.as_str()),
            Some(pair) => pair,
            None => return Err(FlagError(format!("\"{item}\" is not of the form KEY=VALUE"))),
        };
        if table.insert(key.to_owned(), typed(key, value)).is_some() {
            return Err(FlagError(format!("{key} is given twice")));
        }
    }
    T::deserialize(table).map_err(|error| FlagError(error.message().to_owned()))
}

/// What stands between single commas.
fn items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(character);
        }
    }
    items
}

fn typed(key: &str, value: &str) -> Value {
    match value {
        "true" => return Value::Boolean(true),
        "false" => return Value::Boolean(false),
        _ => {}
    }
    let number = value.parse().ok().filter(|_| NUMBERS.contains(&key));
    number.map_or_else(|| Value::String(value.to_owned()), Value::Integer)
}

impl FromStr for Cpu {
    type Err = FlagError;

    /// All keys have names.
    fn from_str(text: &str) -> Result<Self, FlagError> {
        table("", &format!(",{text}"))
    }
}

impl FromStr for Disk {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        table("path", text)
    }
}

impl FromStr for Net {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        table("tap", text)
    }
}

impl FromStr for Vsock {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        table("socket", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ByteSize, Ending, PlatformChoice};

    #[test]
    fn keys_are_those_of_the_file() {
        let disk: Disk =
            "a=b.img,read_only=true,queues=2,serial=7,bytes_per_second=1M".parse().unwrap();
        let expected = Disk {
            path: "a=b.img".into(),
            read_only: true,
            queues: 2,
            serial: Some("7".into()),
            bytes_per_second: Some(ByteSize(1 << 20)),
            ..Disk::default()
        };
        assert_eq!(disk, expected);
        let net: Net = "tap0,mac=02:00:00:00:00:01".parse().unwrap();
        assert_eq!((net.tap.as_str(), net.mac.is_some()), ("tap0", true));
        assert_eq!("/run/v.sock,cid=7".parse::<Vsock>().unwrap().cid, 7);
        let kernel: Vsock = ",vhost=true,cid=7".parse().unwrap();
        assert_eq!((kernel.vhost, kernel.socket.as_os_str().len()), (true, 0));
        let cpu: Cpu = "sockets=2,threads=2".parse().unwrap();
        assert_eq!(cpu, Cpu { sockets: 2, cores: None, threads: 2 });
        assert!("2".parse::<Cpu>().is_err());
        assert_eq!("tdx".parse(), Ok(PlatformChoice::Tdx));
    }

    #[test]
    fn comma_in_a_path_is_written_twice() {
        let path = |text: &str| text.parse::<Disk>().unwrap().path;
        assert_eq!(path("a,,b.img,queues=2"), std::path::Path::new("a,b.img"));
        assert_eq!(path("a,,,queues=2"), std::path::Path::new("a,"));
        assert_eq!(path(",,,,a"), std::path::Path::new(",,a"));
        let refused = "a,,queues=2,b".parse::<Disk>().unwrap_err();
        assert_eq!(refused.to_string(), "\"b\" is not of the form KEY=VALUE");
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let refused = |text: &str| text.parse::<Disk>().unwrap_err().to_string();
        assert_eq!(refused("a,ro"), "\"ro\" is not of the form KEY=VALUE");
        assert_eq!(refused("a,direct=true,direct=true"), "direct is given twice");
        assert!(refused("a,speed=1").starts_with("unknown field `speed`, expected one of `path`"));
        assert!(refused("a,queues=many").contains("expected u16"), "{}", refused("a,queues=many"));
        let word = "stop".parse::<Ending>().unwrap_err();
        assert_eq!(word.to_string(), "\"stop\" is not one of exit, restart");
    }
}

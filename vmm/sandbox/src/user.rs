//! The user that a guest's process becomes.

use std::fs;
use std::io;
use std::str::FromStr;

use rustix::fs::{Gid, Uid};

/// A user and its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub(crate) user: Uid,
    pub(crate) group: Gid,
}

/// Reason why a text names no user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// /etc/passwd.
    #[error("could not read /etc/passwd")]
    Read(#[source] io::Error),
    /// The name is not there.
    #[error("/etc/passwd has no user {0:?}; give UID:GID")]
    Unknown(String),
}

impl FromStr for User {
    type Err = UserError;

    /// `UID:GID`, or the name of a user of /etc/passwd.
    fn from_str(text: &str) -> Result<Self, UserError> {
        if let Some((user, group)) = text.split_once(':')
            && let (Ok(user), Ok(group)) = (user.parse(), group.parse())
        {
            return Ok(Self { user: Uid::from_raw(user), group: Gid::from_raw(group) });
        }
        find(text, &fs::read_to_string("/etc/passwd").map_err(UserError::Read)?)
            .ok_or_else(|| UserError::Unknown(text.into()))
    }
}

/// The user `name` in the lines of a file such as /etc/passwd (passwd(5)).
fn find(name: &str, passwd: &str) -> Option<User> {
    let mut users = passwd.lines().map(|line| line.split(':'));
    let mut fields =
        users.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let user = fields.nth(1)?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some(User { user: Uid::from_raw(user), group: Gid::from_raw(group) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(user: u32, group: u32) -> User {
        User { user: Uid::from_raw(user), group: Gid::from_raw(group) }
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nguests:x:990:991::/:/usr/sbin/nologin\nodd:x:a:1\n";
        assert_eq!(find("guests", passwd), Some(user(990, 991)));
        assert_eq!(find("guest", passwd), None);
        assert_eq!(find("odd", passwd), None);
        assert_eq!("7:8".parse::<User>().unwrap(), user(7, 8));
        assert_eq!("root".parse::<User>().unwrap(), user(0, 0));
        for wrong in ["", "7", "7:", "-1:0", "4294967296:0", "no such user"] {
            assert!(wrong.parse::<User>().is_err(), "{wrong}");
        }
    }
}

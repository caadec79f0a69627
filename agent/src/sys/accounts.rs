//! Users and groups, from the files themselves: a static program has no NSS.

use super::{Sys, SysError};

/// The most that is read of passwd or group, bytes.
const LIMIT: u64 = 4 << 20;

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

impl Sys {
    fn account_file(&self, path: &str) -> Result<String, SysError> {
        let bytes = self.read(path, LIMIT)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A user by name.
    pub fn user(&self, name: &str) -> Result<Account, SysError> {
        let text = self.account_file("/etc/passwd")?;
        let found = rows(&text).find_map(|row| match row[..] {
            [n, _, uid, gid, _, home, ..] if n == name => Some(Account {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: home.to_owned(),
            }),
            _ => None,
        });
        match found {
            Some(account) => Ok(account),
            // root is 0 also where the file says nothing yet.
            None if name == "root" => {
                Ok(Account { name: name.to_owned(), uid: 0, gid: 0, home: "/root".to_owned() })
            }
            None => Err(SysError::NoAccount { what: "user", name: name.to_owned() }),
        }
    }

    /// A group's id by name.
    pub fn group(&self, name: &str) -> Result<u32, SysError> {
        let text = self.account_file("/etc/group")?;
        let found = rows(&text).find_map(|row| match row[..] {
            [n, _, gid, ..] if n == name => gid.parse().ok(),
            _ => None,
        });
        match found {
            Some(gid) => Ok(gid),
            None if name == "root" => Ok(0),
            None => Err(SysError::NoAccount { what: "group", name: name.to_owned() }),
        }
    }

    /// Names for ids, for people; the number where there is none.
    #[must_use]
    pub fn names(&self, uid: u32, gid: u32) -> (String, String) {
        let name = |path: &str, id: u32| {
            let text = self.account_file(path).unwrap_or_default();
            let id = id.to_string();
            let found = rows(&text).find(|row| row.get(2) == Some(&id.as_str())).map(|row| row[0].to_owned());
            found.unwrap_or(if id == "0" { "root".to_owned() } else { id })
        };
        (name("/etc/passwd", uid), name("/etc/group", gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_by_table() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(
            dir.path().join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/bash\nbroken\nbad:x:zz:1::/:\nweb.x:x:1001:33:,,,:/srv/web:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nwww-data:x:33:a,b\n").unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let web = sys.user("web.x").unwrap();
        assert_eq!((web.uid, web.gid, web.home.as_str()), (1001, 33, "/srv/web"));
        assert!(matches!(sys.user("bad"), Err(SysError::NoAccount { what: "user", .. })));
        assert!(matches!(sys.user("we"), Err(SysError::NoAccount { .. })));
        assert_eq!(sys.group("www-data").unwrap(), 33);
        assert!(sys.group("nobody").is_err());
        assert_eq!(sys.names(1001, 33), ("web.x".to_owned(), "www-data".to_owned()));
        assert_eq!(sys.names(7, 0), ("7".to_owned(), "root".to_owned()));
    }
}

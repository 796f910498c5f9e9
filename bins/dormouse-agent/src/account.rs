//! Whose rights the workload gets: the image's user notation, read against the image's own
//! `/etc/passwd` and `/etc/group`. Pure; no name service is asked.

/// A user as the workload runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups beside the main one, which is included too.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Resolves `user`, `uid`, `user:group` or `uid:gid`; empty means root. A number needs no entry in
/// the files. With a group given no others are taken along.
pub(crate) fn resolve(notation: &str, passwd: &str, group: &str) -> Result<Account, String> {
    let (user, wanted_group) = match notation.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (notation, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = find_user(user, passwd);
    let uid = match &entry {
        Some(entry) => entry.uid,
        None => user
            .parse()
            .map_err(|_| format!("user {user:?} is not in the image's /etc/passwd"))?,
    };
    let gid = match wanted_group {
        Some(name) if !name.is_empty() => find_group(name, group)?,
        Some(_) | None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    if let (None, Some(entry)) = (wanted_group, &entry) {
        groups.extend(groups_of(&entry.name, group).filter(|&further| further != gid));
    }
    let without_entry = || {
        if uid == 0 {
            "/root".to_owned()
        } else {
            "/".to_owned()
        }
    };
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or_else(without_entry);
    Ok(Account {
        uid,
        gid,
        groups,
        home,
    })
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// The first line for `user` by name, else by number. A name wins: `1000` may be a name.
fn find_user(user: &str, passwd: &str) -> Option<Entry> {
    let entries = || {
        passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let _password = fields.next()?;
            let uid = fields.next()?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            let _comment = fields.next()?;
            let home = fields.next()?.to_owned();
            Some(Entry { name, uid, gid, home })
        })
    };
    let number = user.parse().ok();
    entries()
        .find(|entry| entry.name == user)
        .or_else(|| entries().find(|entry| Some(entry.uid) == number))
}

/// Name, number and members of each group.
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, String> {
    let by_name = group_lines(group)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid);
    by_name
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| format!("group {wanted:?} is not in the image's /etc/group"))
}

fn groups_of<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_lines(group)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nwww:x:33:33::/var/www:/bin/false\n\
                          1000:x:7:7::/odd:\nbroken line\nempty:x:8:8:::\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:www,other\ntty:x:5:www\n";

    fn check(notation: &str, want: Result<(u32, u32, &[u32], &str), &str>) {
        let got = resolve(notation, PASSWD, GROUP);
        let got = got
            .as_ref()
            .map(|a| (a.uid, a.gid, a.groups.as_slice(), a.home.as_str()));
        assert_eq!(got.map_err(String::as_str), want, "{notation:?}");
    }

    #[test]
    fn notations() {
        check("", Ok((0, 0, &[0], "/root")));
        check("root", Ok((0, 0, &[0], "/root")));
        check("www", Ok((33, 33, &[33, 4, 5], "/var/www")));
        check("33", Ok((33, 33, &[33, 4, 5], "/var/www")));
        check("www:adm", Ok((33, 4, &[4], "/var/www")));
        check("www:99", Ok((33, 99, &[99], "/var/www")));
        check("www:", Ok((33, 33, &[33], "/var/www")));
        check(":adm", Ok((0, 4, &[4], "/root")));
        check("4242", Ok((4242, 0, &[0], "/")));
        check("4242:4243", Ok((4242, 4243, &[4243], "/")));
        check("1000", Ok((7, 7, &[7], "/odd")));
        check("empty", Ok((8, 8, &[8], "/")));
        check("nobody", Err("user \"nobody\" is not in the image's /etc/passwd"));
        check(
            "www:nogroup",
            Err("group \"nogroup\" is not in the image's /etc/group"),
        );
        check("-1", Err("user \"-1\" is not in the image's /etc/passwd"));
        assert_eq!(resolve("", "", "").map(|a| a.home), Ok("/root".to_owned()));
    }
}

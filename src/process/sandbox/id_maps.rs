//! The id maps of a worker's user namespace, written by its parent, an ordinary user.
//!
//! The kernel lets such a user map one id, their own; anything more is done by newuidmap(1) and newgidmap(1), which
//! check /etc/subuid and /etc/subgid.

use std::fs;
use std::process::Command;

use libc::pid_t;
use virtiofsd::idmap::{GidMap, UidMap};
use virtiofsd::sandbox::Error as Cause;

/// One line of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    inside: u32,
    outside: u32,
    count: u32,
}

impl From<&UidMap> for Line {
    fn from(map: &UidMap) -> Line {
        Line { inside: map.inside_uid, outside: map.outside_uid, count: map.count }
    }
}

impl From<&GidMap> for Line {
    fn from(map: &GidMap) -> Line {
        Line { inside: map.inside_gid, outside: map.outside_gid, count: map.count }
    }
}

/// Gives the user namespace of `pid` its maps. An empty map means one's own id alone.
pub(super) fn write(pid: pid_t, uid_map: &[UidMap], gid_map: &[GidMap]) -> Result<(), Cause> {
    // SAFETY: no arguments, no effects.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let uid_map = lines(uid_map, uid);
    let gid_map = lines(gid_map, gid);
    match own_line(&uid_map, uid) {
        Some(line) => write_line(pid, "uid_map", line),
        None => run_helper("newuidmap", pid, &uid_map),
    }
    .map_err(Cause::WriteUidMap)?;
    match own_line(&gid_map, gid) {
        Some(line) => write_file(pid, "setgroups", "deny").and_then(|()| write_line(pid, "gid_map", line)),
        None => run_helper("newgidmap", pid, &gid_map),
    }
    .map_err(Cause::WriteGidMap)
}

fn lines<'a, M>(map: &'a [M], own: u32) -> Vec<Line>
where
    Line: From<&'a M>,
{
    if map.is_empty() {
        vec![Line { inside: own, outside: own, count: 1 }]
    } else {
        map.iter().map(Line::from).collect()
    }
}

/// The only line, if it needs no privilege.
fn own_line(map: &[Line], own: u32) -> Option<Line> {
    match map {
        [line] if line.outside == own && line.count <= 1 => Some(*line),
        _ => None,
    }
}

fn write_line(pid: pid_t, name: &str, line: Line) -> Result<(), String> {
    write_file(pid, name, &format!("{} {} 1", line.inside, line.outside))
}

fn write_file(pid: pid_t, name: &str, text: &str) -> Result<(), String> {
    fs::write(format!("/proc/{pid}/{name}"), text).map_err(|error| error.to_string())
}

fn run_helper(program: &str, pid: pid_t, map: &[Line]) -> Result<(), String> {
    let numbers = map.iter().flat_map(|line| [line.inside, line.outside, line.count]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .output()
        .map_err(|error| format!("failed to execute {program}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_single_id_goes_without_help() {
        let line = |inside, outside, count| Line { inside, outside, count };
        assert_eq!(own_line(&lines::<UidMap>(&[], 1000), 1000), Some(line(1000, 1000, 1)));
        let map: UidMap = ":0:1000:1:".parse().unwrap();
        assert_eq!(own_line(&lines(&[map], 1000), 1000), Some(line(0, 1000, 1)));
        for map in [vec![line(0, 1001, 1)], vec![line(0, 1000, 2)], vec![line(0, 1000, 1), line(1, 5000, 1)]] {
            assert_eq!(own_line(&map, 1000), None, "{map:?}");
        }
    }
}

//! A proxy before moto that loses answers and fails requests: what became of them must be told truly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use super::s3::{Server, moto, url_at};
use super::*;

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The store does it, and nobody hears.
    LoseAnswer,
    /// 503, and the store never sees it.
    Refuse,
}

type Rule = Box<dyn FnMut(&str) -> Option<Fault> + Send>;

/// What becomes of a request's head on its way.
type Edit = Box<dyn FnMut(String) -> String + Send>;

/// A proxy that asks its rule about each request line, and hands each head to its editor.
pub(super) struct Proxy {
    pub port: u16,
    rule: Arc<Mutex<Rule>>,
    edit: Arc<Mutex<Edit>>,
    /// Heads as they came.
    seen: Arc<Mutex<Vec<String>>>,
}

fn message(from: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|l| l.strip_prefix("content-length:")).map_or(0, |v| v.trim().parse().unwrap());
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    Some((head, body))
}

impl Proxy {
    pub fn new(server: &Server) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = server.port;
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_| None)));
        let edit: Arc<Mutex<Edit>> = Arc::new(Mutex::new(Box::new(|head| head)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (rules, edits, log) = (Arc::clone(&rule), Arc::clone(&edit), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (rules, edits, log) = (Arc::clone(&rules), Arc::clone(&edits), Arc::clone(&log));
                std::thread::spawn(move || {
                    let mut from = BufReader::new(stream.try_clone().unwrap());
                    let mut to = stream;
                    while let Some((head, body)) = message(&mut from) {
                        let line = head.lines().next().unwrap_or_default().to_owned();
                        log.lock().unwrap().push(head.clone());
                        let fault = (rules.lock().unwrap())(&line);
                        if fault == Some(Fault::Refuse) {
                            let _ = to.write_all(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n");
                            continue;
                        }
                        let mut store = TcpStream::connect(("127.0.0.1", upstream)).unwrap();
                        let head = (edits.lock().unwrap())(head);
                        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                        store.write_all(head.as_bytes()).unwrap();
                        store.write_all(&body).unwrap();
                        let mut answer = Vec::new();
                        let _ = store.read_to_end(&mut answer);
                        // Either way the connection ends; the answer says so itself.
                        if fault.is_none() {
                            let _ = to.write_all(&answer);
                        }
                        return;
                    }
                });
            }
        });
        Proxy { port, rule, edit, seen }
    }

    pub fn edit(&self, edit: impl FnMut(String) -> String + Send + 'static) {
        *self.edit.lock().unwrap() = Box::new(edit);
    }

    pub fn rule(&self, rule: impl FnMut(&str) -> Option<Fault> + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// `fault` for the first request whose line contains all of `parts`.
    pub fn once(&self, parts: &'static [&'static str], fault: Fault) {
        let mut done = false;
        self.rule(move |line| {
            let hit = !done && parts.iter().all(|part| line.contains(part));
            done |= hit;
            hit.then_some(fault)
        });
    }

    /// How many requests had `part` in their first line.
    pub fn count(&self, part: &str) -> usize {
        self.heads().iter().filter(|head| head.lines().next().is_some_and(|line| line.contains(part))).count()
    }

    pub fn heads(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

fn bed() -> (Server, Proxy, Bed) {
    let server = moto();
    let proxy = Proxy::new(&server);
    let bed = Bed::with_timeout(&url_at(proxy.port, ""), Duration::from_secs(20));
    (server, proxy, bed)
}

#[test]
fn a_lost_answer_to_a_conditional_write_is_no_conflict() {
    let (_server, proxy, bed) = bed();
    proxy.once(&["PUT ", "/f"], Fault::LoseAnswer);
    let made = bed.put_when("f", b"mine", Condition::IfAbsent).unwrap();
    assert_eq!(proxy.count("PUT /bucket/f"), 2, "it was repeated");
    assert_eq!(bed.get("f"), b"mine");
    proxy.once(&["PUT ", "/f"], Fault::LoseAnswer);
    let again = bed.put_when("f", b"mine again", Condition::IfVersion(made.version())).unwrap();
    assert_eq!(bed.stat("f").unwrap().version(), again.version());
    // But somebody else's object of the same length is a conflict, repeated or not.
    proxy.once(&["PUT ", "/f"], Fault::Refuse);
    let refused = bed.put_when("f", b"other text", Condition::IfAbsent).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Exists, "{refused}");
    assert_eq!(bed.get("f"), b"mine again");
}

#[test]
fn a_lost_answer_to_the_last_request_of_an_upload_is_no_failure() {
    let (_server, proxy, bed) = bed();
    let bytes = noise(20 << 20, 3);
    let segments = bytes.chunks(1 << 20).map(|part| bed.data(part)).collect();
    proxy.once(&["POST ", "uploadId="], Fault::LoseAnswer);
    let made = block_on(bed.remote.compose("big", Vec::new(), Condition::IfAbsent, segments, None, ())).unwrap();
    assert_eq!(made.size, bytes.len() as u64);
    assert!(bed.get("big") == bytes);
}

#[test]
fn a_failed_upload_leaves_the_old_object_and_no_parts() {
    let (_server, proxy, bed) = bed();
    let old = bed.put("big", b"old content");
    let segments: Vec<_> = noise(40 << 20, 4).chunks(1 << 20).map(|part| bed.data(part)).collect();
    proxy.rule(|line| (line.starts_with("PUT ") && line.contains("partNumber=2")).then_some(Fault::Refuse));
    let version = Condition::IfVersion(old.version());
    let failed = block_on(bed.remote.compose("big", Vec::new(), version, segments, None, ())).unwrap_err();
    assert_eq!(failed.kind, StoreErrorKind::Unavailable, "{failed}");
    assert_eq!(bed.get("big"), b"old content");
    assert_eq!(proxy.count("POST /bucket/big?uploadId="), 0, "a failed upload must never be completed");
    assert_eq!(proxy.count("DELETE /bucket/big?uploadId="), 1, "its parts must be given back");
}

#[test]
fn a_failed_copy_takes_a_directory_rename_back() {
    let (_server, proxy, bed) = bed();
    bed.mkdir("d").unwrap();
    for n in 0..60 {
        bed.put(&format!("d/{n:02}"), n.to_string().as_bytes());
    }
    proxy.rule(|line| line.starts_with("PUT /bucket/e/45").then_some(Fault::Refuse));
    assert_eq!(bed.rename_dir("d", "e"), Err(StoreErrorKind::Unavailable));
    proxy.rule(|_| None);
    assert_eq!(bed.names("d").len(), 60);
    assert_eq!(bed.kind("e"), Err(StoreErrorKind::NotFound));
    bed.rename_dir("d", "e").unwrap();
    assert_eq!(bed.names("").len(), 1);
    assert_eq!(bed.get("e/45"), b"45");
}

#[test]
fn a_deletion_whose_answer_was_lost_is_done() {
    let (_server, proxy, bed) = bed();
    bed.put("a", b"text");
    proxy.once(&["DELETE ", "/a"], Fault::LoseAnswer);
    bed.rename("a", "b", Condition::IfAbsent).unwrap();
    assert_eq!(bed.names(""), ["b"]);
}

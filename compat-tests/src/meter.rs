//! A TCP relay in front of a store's server that tells what passes, and can hold an upload back.
//!
//! HTTP requests are recognised by the method that a piece of the stream begins with; clients wait for each answer, so a
//! request never begins in the middle of one. What is encrypted is only counted.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Methods of HTTP and WebDAV.
const METHODS: [&str; 10] = ["GET", "HEAD", "PUT", "POST", "DELETE", "COPY", "MOVE", "MKCOL", "PROPFIND", "PROPPATCH"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Nothing,
    /// The next upload is held.
    Next,
    /// It waits.
    Held,
}

#[derive(Debug)]
struct State {
    sent: u64,
    methods: Vec<&'static str>,
    hold: Hold,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, timeout: Duration, condition: impl Fn(&State) -> bool) -> bool {
        let state = self.state();
        let waited = self.changed.wait_timeout_while(state, timeout, |state| condition(state));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// The relay. It ends with the process.
#[derive(Debug)]
pub struct Meter {
    port: u16,
    shared: Arc<Shared>,
}

/// What has passed since some moment.
#[derive(Debug)]
pub struct Traffic {
    /// Bytes from the daemon to the server.
    pub sent: u64,
    /// Methods of the requests, in order.
    pub methods: Vec<&'static str>,
}

/// A moment to count from.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    sent: u64,
    methods: usize,
}

impl Meter {
    /// A relay in front of `server_port` on the loopback interface.
    ///
    /// # Panics
    /// When no port can be listened on.
    pub fn before(server_port: u16) -> Meter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = Mutex::new(State { sent: 0, methods: Vec::new(), hold: Hold::Nothing });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let seen = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) {
                    client.set_nodelay(true).ok();
                    server.set_nodelay(true).ok();
                    relay(&client, &server, Some(&seen));
                    relay(&server, &client, None);
                }
            }
        });
        Meter { port, shared }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Now.
    pub fn mark(&self) -> Mark {
        let state = self.shared.state();
        Mark { sent: state.sent, methods: state.methods.len() }
    }

    /// What has passed since `mark`.
    pub fn since(&self, mark: Mark) -> Traffic {
        let state = self.shared.state();
        Traffic { sent: state.sent - mark.sent, methods: state.methods[mark.methods..].to_vec() }
    }

    /// Holds the next PUT or POST back.
    pub fn hold_next_upload(&self) {
        self.shared.state().hold = Hold::Next;
    }

    /// Waits until an upload is held; `false`: none came.
    pub fn wait_held(&self, timeout: Duration) -> bool {
        self.shared.wait_while(timeout, |state| state.hold != Hold::Held)
    }

    /// Lets what is held go on.
    pub fn let_go(&self) {
        self.shared.state().hold = Hold::Nothing;
        self.shared.changed.notify_all();
    }
}

/// The method that a piece of a stream begins with.
pub(crate) fn method(piece: &[u8]) -> Option<&'static str> {
    METHODS.into_iter().find(|method| piece.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.starts_with(b" ")))
}

fn note(shared: &Shared, piece: &[u8]) {
    let mut state = shared.state();
    state.sent += piece.len() as u64;
    let Some(method) = method(piece) else { return };
    state.methods.push(method);
    if state.hold == Hold::Next && matches!(method, "PUT" | "POST") {
        state.hold = Hold::Held;
        shared.changed.notify_all();
        drop(shared.changed.wait_while(state, |state| state.hold == Hold::Held));
    }
}

fn relay(from: &TcpStream, to: &TcpStream, shared: Option<&Arc<Shared>>) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
    let shared = shared.cloned();
    thread::spawn(move || {
        let mut pass = || -> io::Result<()> {
            let mut buffer = [0; 64 << 10];
            loop {
                let n = from.read(&mut buffer)?;
                if n == 0 {
                    return Ok(());
                }
                if let Some(shared) = &shared {
                    note(shared, &buffer[..n]);
                }
                to.write_all(&buffer[..n])?;
            }
        };
        pass().ok();
        to.shutdown(Shutdown::Write).ok();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_their_methods() {
        assert_eq!(method(b"PUT /a HTTP/1.1"), Some("PUT"));
        assert_eq!(method(b"PUTS"), None);
        assert_eq!(method(b"\x17\x03"), None);
    }

    #[test]
    fn what_passes_is_counted_and_an_upload_is_held() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let meter = Meter::before(server.local_addr().unwrap().port());
        let mark = meter.mark();
        let mut client = TcpStream::connect(("127.0.0.1", meter.port())).unwrap();
        let mut peer = server.accept().unwrap().0;
        client.write_all(b"HEAD /").unwrap();
        let mut got = [0; 6];
        peer.read_exact(&mut got).unwrap();
        meter.hold_next_upload();
        client.write_all(b"PUT /x").unwrap();
        assert!(meter.wait_held(Duration::from_secs(10)));
        meter.let_go();
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"PUT /x");
        let traffic = meter.since(mark);
        assert_eq!((traffic.sent, traffic.methods), (12, vec!["HEAD", "PUT"]));
    }
}

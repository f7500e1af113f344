//! A TCP relay in front of a store's server that can be shut: connections then stay open and nothing passes. It can also
//! make a server slow.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// The relay. It ends with the process.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    open: Arc<(Mutex<bool>, Condvar)>,
    /// Milliseconds that each piece of an answer is held back.
    delay: Arc<AtomicU64>,
}

impl Gate {
    /// An open gate in front of `server_port` on the loopback interface.
    ///
    /// # Panics
    /// When no port can be listened on.
    pub fn before(server_port: u16) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let open = Arc::new((Mutex::new(true), Condvar::new()));
        let state = Arc::clone(&open);
        let delay = Arc::new(AtomicU64::new(0));
        let (none, late) = (Arc::default(), Arc::clone(&delay));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) {
                    relay(&client, &server, &state, &none);
                    relay(&server, &client, &state, &late);
                }
            }
        });
        Gate { port, open, delay }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Holds each piece of an answer back for so long, from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Lets nothing pass any more.
    pub fn shut(&self) {
        *self.open.0.lock().expect("no panics here") = false;
    }

    /// Lets everything pass, what waits included.
    pub fn open(&self) {
        *self.open.0.lock().expect("no panics here") = true;
        self.open.1.notify_all();
    }
}

fn relay(from: &TcpStream, to: &TcpStream, open: &Arc<(Mutex<bool>, Condvar)>, delay: &Arc<AtomicU64>) {
    let copies = (from.try_clone(), to.try_clone());
    let (Ok(mut from), Ok(mut to)) = copies else { return };
    let (open, delay) = (Arc::clone(open), Arc::clone(delay));
    thread::spawn(move || {
        let mut pass = || -> io::Result<()> {
            let mut buffer = [0; 64 << 10];
            loop {
                let n = from.read(&mut buffer)?;
                thread::sleep(Duration::from_millis(delay.load(Ordering::Relaxed)));
                let guard = open.0.lock().expect("no panics here");
                drop(open.1.wait_while(guard, |open| !*open).expect("no panics here"));
                if n == 0 {
                    return Ok(());
                }
                to.write_all(&buffer[..n])?;
            }
        };
        pass().ok();
        to.shutdown(Shutdown::Write).ok();
    });
}

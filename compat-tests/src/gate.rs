//! A TCP relay in front of a store's server that can be shut: connections then stay open and nothing passes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// The relay. It ends with the process.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    open: Arc<(Mutex<bool>, Condvar)>,
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
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) {
                    relay(&client, &server, &state);
                    relay(&server, &client, &state);
                }
            }
        });
        Gate { port, open }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
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

fn relay(from: &TcpStream, to: &TcpStream, open: &Arc<(Mutex<bool>, Condvar)>) {
    let copies = (from.try_clone(), to.try_clone());
    let (Ok(mut from), Ok(mut to)) = copies else { return };
    let open = Arc::clone(open);
    thread::spawn(move || {
        let mut pass = || -> io::Result<()> {
            let mut buffer = [0; 64 << 10];
            loop {
                let n = from.read(&mut buffer)?;
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

//! A TCP relay in front of several servers of which one is in charge: each HTTP request goes to the one that is in charge
//! when it begins, and is answered by that one, whatever becomes of the switch meanwhile.
//!
//! Requests are recognised as in [`crate::meter`]: by the method that a piece of the stream begins with. Clients wait for
//! each answer, so a request never begins in the middle of another.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use crate::meter::method;

/// The relay. It ends with the process.
#[derive(Debug)]
pub struct Switch {
    port: u16,
    /// The server in charge.
    to: Arc<AtomicU16>,
}

impl Switch {
    /// A relay on the loopback interface, in front of the server at `server_port` for now.
    ///
    /// # Panics
    /// When no port can be listened on.
    pub fn to(server_port: u16) -> Switch {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let to = Arc::new(AtomicU16::new(server_port));
        let target = Arc::clone(&to);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let target = Arc::clone(&target);
                // Whoever hangs up is nobody's loss.
                thread::spawn(move || drop(serve(client, &target)));
            }
        });
        Switch { port, to }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Requests that begin from now on go to the server at `server_port`.
    pub fn turn(&self, server_port: u16) {
        self.to.store(server_port, Ordering::SeqCst);
    }
}

fn serve(mut client: TcpStream, target: &AtomicU16) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut server: Option<(u16, TcpStream)> = None;
    let mut buffer = [0; 64 << 10];
    loop {
        let n = client.read(&mut buffer)?;
        if n == 0 {
            if let Some((_, server)) = server {
                server.shutdown(Shutdown::Write)?;
            }
            return Ok(());
        }
        let port = target.load(Ordering::SeqCst);
        let begins = method(&buffer[..n]).is_some();
        if server.as_ref().is_none_or(|(known, _)| begins && *known != port) {
            let new = TcpStream::connect(("127.0.0.1", port))?;
            new.set_nodelay(true)?;
            let (mut answers, mut to) = (new.try_clone()?, client.try_clone()?);
            // The one before has answered all that it was asked; its end is not the client's.
            let before = server.replace((port, new));
            if let Some((_, before)) = before {
                before.shutdown(Shutdown::Both).ok();
            }
            thread::spawn(move || io::copy(&mut answers, &mut to).map(drop));
        }
        if let Some((_, server)) = &mut server {
            server.write_all(&buffer[..n])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_to_the_server_in_charge_when_they_begin() {
        let servers = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let port = |n: usize| servers[n].local_addr().unwrap().port();
        let switch = Switch::to(port(0));
        let mut client = TcpStream::connect(("127.0.0.1", switch.port())).unwrap();
        client.write_all(b"PUT /a").unwrap();
        let mut first = servers[0].accept().unwrap().0;
        switch.turn(port(1));
        let mut got = [0; 6];
        first.read_exact(&mut got).unwrap();
        client.write_all(b"body").unwrap();
        first.read_exact(&mut got[..4]).unwrap();
        assert_eq!(&got[..4], b"body");
        first.write_all(b"yes").unwrap();
        client.read_exact(&mut got[..3]).unwrap();
        client.write_all(b"GET /b").unwrap();
        let mut second = servers[1].accept().unwrap().0;
        second.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"GET /b");
        second.write_all(b"no").unwrap();
        client.read_exact(&mut got[..2]).unwrap();
        assert_eq!(&got[..2], b"no");
    }
}

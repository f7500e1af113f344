//! The device, from a vring in a test's memory to a front end on a socket.

mod control;
mod driver;
mod executor;
mod front_end;
mod fuse;
mod malformed;
mod message;
mod queue;

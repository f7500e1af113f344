//! A vhost-user front-end that plays the VMM and the guest driver of a virtio-fs device.
//!
//! Nothing here shares code with the daemon or with the rust-vmm crates it is built on: the vhost-user messages, the
//! split rings and the FUSE structures are written down a second time, from the specifications, so that a mistake in
//! one encoder is not cancelled by the same mistake in the decoder.
//!
//! Layers, each knowing only those above it:
//!
//! - [`memory`]: guest memory, a memfd mapped here and handed to the daemon; an allocator for buffers in it.
//! - [`vhost_user`]: the control protocol over a unix socket with descriptors.
//! - [`ring`]: a split virtqueue as a driver sees it.
//! - [`queue`]: requests and replies over a ring: many in flight, waited for in any order, every reply checked.
//! - [`frontend`]: a connection, its memory and its queues: feature negotiation, set-up, restart, hot-plug.
//! - [`fuse`]: FUSE constants and structures. [`guest`]: typed FUSE operations and path helpers over a front-end.
//! - [`daemon`]: starts a daemon under test; [`subject`]: a share for it, and repeatable chance; [`tree`]: what a host
//!   directory looks like.
//! - [`hostile`]: a guest that breaks the rules, and what must hold afterwards.
//! - [`mounted`]: ovfs on a store, with a guest.
//! - [`stores`]: the servers of stores, a look at them from outside, and the table of what each can do; [`gate`], [`meter`],
//!   [`switch`]: what stands between a daemon and a server.
//! - [`script`], [`cases`], [`transcript`]: the same scripts on two daemons, compared line by line.

pub mod cases;
pub mod daemon;
pub mod error;
pub mod frontend;
pub mod fuse;
pub mod gate;
pub mod guest;
pub mod hostile;
pub mod launch;
pub mod memory;
pub mod meter;
pub mod minivu;
pub mod mounted;
pub mod queue;
pub mod ring;
pub mod rows;
pub mod script;
pub mod stores;
pub mod subject;
pub mod switch;
pub mod transcript;
pub mod tree;
pub mod vhost_user;

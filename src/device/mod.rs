//! The vhost-user device: vrings, descriptor chains, queue workers, completions.

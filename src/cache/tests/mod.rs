//! Tests of the pool, one thing after the other. What threads do to each other is tested in `models`.

mod block;
mod clean;
mod lists;
mod pool;

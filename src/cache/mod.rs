//! Blocks of the pool: who owns them, which are dirty, which may go.

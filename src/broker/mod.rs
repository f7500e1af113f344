//! The broker: the process that talks to stores, through OpenDAL.

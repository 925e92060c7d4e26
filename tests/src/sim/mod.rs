//! The simulation: relay and clients in one thread, under virtual time, over an in-memory network,
//! with the store on the calling thread. Minutes of their life pass in milliseconds, and a seed
//! repeats them.
//!
//! Virtual time is tokio's paused clock, which jumps to the next timer when nothing can run; quinn's
//! runtime adapter, the wall clock and the certificates' clock follow it. What stays real: the
//! cryptography, SQLite, and the file system.

pub mod disk;
pub mod faults;
pub mod net;
pub mod sync;
pub mod world;

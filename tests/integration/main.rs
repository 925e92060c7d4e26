//! Integration tests: one binary, one module per subject.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod access;
mod billing;
mod books;
mod cli;
mod counted;
mod crash;
mod dial;
mod faults;
mod foreign;
mod foreign_server;
mod herd;
mod hostile;
mod house;
mod keys;
mod limits;
mod money;
mod paths;
mod pipes;
mod prices;
mod programs;
mod providers;
mod raw;
mod reconcile;
mod recorded;
mod resume;
mod retries;
mod scripted;
mod secrets;
mod simulation;
mod tcp;
mod vitals;
mod walkthrough;
mod wire;

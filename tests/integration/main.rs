//! Integration tests: one binary, one module per subject.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod access;
mod background;
mod billing;
mod blobs;
mod books;
mod cli;
mod conversation;
mod counted;
mod crash;
mod dial;
mod faults;
mod foreign;
mod foreign_server;
mod gateway;
mod gateway_callers;
mod gateway_corpus;
mod herd;
mod hostile;
mod house;
mod keys;
mod leaving;
mod limits;
mod money;
mod page;
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
mod routes;
mod scripted;
mod sdks;
mod secrets;
mod sessions;
mod simulation;
mod sync;
mod sync_cli;
mod sync_edges;
mod sync_faults;
mod sync_model;
mod sync_wire;
mod tcp;
mod through;
mod unread;
mod user_unit;
mod vitals;
mod walkthrough;
mod wire;

/// Tests that want the whole machine take turns: each is about what happens in time.
pub(crate) static MACHINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

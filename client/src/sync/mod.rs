//! Sync: what lies in this computer's folders and what the relay has are kept the same.
//!
//! [`engine`] does it in rounds: it reads the relay's feed, looks at the places (a [`folder`] of documents, a folder of
//! [`adapters`], a [`settings`] file), lets [`reconcile`] decide for each item from what both agreed on last, and does
//! it. What both agreed on is in the [`index`]. [`follow`] runs a round when something changes on either side. Content
//! above 32 KiB goes and comes in parts ([`cut`], `transfer`).

pub mod adapters;
pub mod config;
pub mod cut;
mod disk;
pub mod engine;
mod files;
pub mod folder;
pub mod follow;
pub mod index;
pub mod log;
mod mounts;
pub mod place;
pub mod reconcile;
pub mod remote;
pub mod settings;
mod transfer;
mod written;

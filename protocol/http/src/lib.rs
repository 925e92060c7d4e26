//! The APIs of OpenAI and Anthropic as an HTTP server sees them.
//!
//! Two programs serve them: `belay up` on a computer's loopback, `belayd` on an edge node. What is the same for
//! both is here: which path asks for what ([`api`]), what a caller says beside its body ([`wishes`]), how a body
//! is read ([`upload`]), how an answer becomes a response or a stream of events ([`answer`], [`events`]), and how
//! a failure is told in the words that a caller's SDK knows ([`refusal`]). Where answers come from is a trait
//! ([`answer::Source`]): a tunnel there, the relay's own streams here.
//!
//! This crate must not know sockets, the client or the relay.
#![warn(missing_docs)]

pub mod answer;
pub mod api;
pub mod events;
pub mod models;
pub mod patient;
pub mod refusal;
pub mod upload;
pub mod wishes;

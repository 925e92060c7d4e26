//! What belay must know of provider bodies, and the few edits that it makes to them.
//!
//! A request body is read once ([`body`]): the facts that decide the hold, and where in the bytes
//! they stand. It is changed only at those places ([`edit`]); everything else reaches the provider
//! as the caller wrote it. An answer is cut into server-sent events without copying ([`sse`]),
//! each is glanced at for usage and errors ([`usage`]), and passed on as it is. [`answer`] reads
//! text out of events for a caller that wants text, [`prompt`] is belay's own request format, and
//! [`translate`] carries requests and answers over to the other API.

pub mod answer;
pub mod body;
pub mod edit;
pub mod prompt;
pub mod sse;
pub mod translate;
pub mod usage;

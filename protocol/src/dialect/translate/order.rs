//! The pieces of an answer in an order in which every dialect can write them.
//!
//! A provider may open several calls at once and give their arguments in turns; a writer has one block open
//! at a time. So while a call is open, all that does not belong to it is held back, until the call is known
//! to be over: by its provider's word, or by the answer's end.

use super::said::Delta;
use std::collections::VecDeque;

/// Puts pieces into order.
#[derive(Debug, Default)]
pub(super) struct Order {
    open: Option<Call>,
    held: VecDeque<Held>,
    /// Calls so far; one without an id gets its number.
    calls: u64,
}

#[derive(Debug)]
struct Call {
    key: u64,
    /// Nothing of its arguments has come.
    is_empty: bool,
}

#[derive(Debug)]
enum Held {
    Piece(Delta),
    Call { key: u64, id: String, name: String, arguments: String, is_over: bool },
}

impl Order {
    /// What can be written now that this piece has come.
    pub(super) fn take(&mut self, delta: Delta, out: &mut Vec<Delta>) {
        match delta {
            Delta::Call { key, id, name } => {
                self.calls += 1;
                let id = if id.is_empty() { format!("call_{}", self.calls) } else { id };
                if self.open.is_some() {
                    let arguments = String::new();
                    return self.held.push_back(Held::Call { key, id, name, arguments, is_over: false });
                }
                self.open = Some(Call { key, is_empty: true });
                out.push(Delta::Call { key, id, name });
            }
            Delta::Arguments { key, more } => match &mut self.open {
                Some(open) if open.key == key => {
                    open.is_empty = false;
                    out.push(Delta::Arguments { key, more });
                }
                // One that is over, or never was: nothing can be done with them.
                _ => {
                    if let Some((arguments, _)) = self.held(key) {
                        arguments.push_str(&more);
                    }
                }
            },
            Delta::CallEnd { key } => match &self.open {
                Some(open) if open.key == key => self.close(false, out),
                _ => {
                    if let Some((_, is_over)) = self.held(key) {
                        *is_over = true;
                    }
                }
            },
            Delta::Text(_) | Delta::Thought(_) if self.open.is_some() => self.held.push_back(Held::Piece(delta)),
            Delta::Stop(_) | Delta::Done => {
                self.close(true, out);
                out.push(delta);
            }
            other => out.push(other),
        }
    }

    /// The newest call of that key that is held back.
    fn held(&mut self, wanted: u64) -> Option<(&mut String, &mut bool)> {
        self.held.iter_mut().rev().find_map(|held| match held {
            Held::Call { key, arguments, is_over, .. } if *key == wanted => Some((arguments, is_over)),
            _ => None,
        })
    }

    /// The open call is over, and what was held back follows; `all`: nothing of any call is to come.
    fn close(&mut self, all: bool, out: &mut Vec<Delta>) {
        self.end(out);
        while let Some(held) = self.held.pop_front() {
            match held {
                Held::Piece(delta) => out.push(delta),
                Held::Call { key, id, name, arguments, is_over } => {
                    let is_empty = arguments.is_empty();
                    self.open = Some(Call { key, is_empty });
                    out.push(Delta::Call { key, id, name });
                    if !is_empty {
                        out.push(Delta::Arguments { key, more: arguments });
                    }
                    if !(all || is_over) {
                        return;
                    }
                    self.end(out);
                }
            }
        }
    }

    /// A call without arguments has the empty object: a program reads them as JSON.
    fn end(&mut self, out: &mut Vec<Delta>) {
        let Some(Call { key, is_empty }) = self.open.take() else { return };
        if is_empty {
            out.push(Delta::Arguments { key, more: "{}".into() });
        }
    }
}
